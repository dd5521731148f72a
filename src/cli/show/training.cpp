#include "cli/show/training.h"

#include <cmath>

#include "cli/show/terminal.h"

namespace dynslice::cli {

std::vector<std::string> training_header(bool as_perplexity) {
  if (as_perplexity) return {"update", "perplexity, trained on", "held out"};
  return {"update", "loss, trained on", "held out"};
}

std::vector<std::vector<std::string>> training_rows(const TrainingResult& result, bool as_perplexity) {
  const auto shown = [&](double loss) {
    return as_perplexity ? format_fixed(std::exp(loss), 3) : format_fixed(loss, 5);
  };
  std::vector<std::vector<std::string>> rows;
  for (const TrainingPoint& point : result.points) {
    rows.push_back({std::to_string(point.update), point.update > 0 ? shown(point.training_loss) : "-",
                    shown(point.validation_loss)});
  }
  return rows;
}

std::string training_summary(const TrainingResult& result) {
  std::string text = "Trained on " + format_count(result.tokens) + " tokens in " + std::to_string(result.updates) +
                     " updates" + (result.stopped_early ? " (stopped early)" : "");
  return text + "; kept " +
         (result.best_update == 0 ? "what there was before: no update made it better"
                                  : "the parameters after update " + std::to_string(result.best_update)) +
         ".\n";
}

}  // namespace dynslice::cli
