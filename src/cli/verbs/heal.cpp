#include "dynslice/jobs/heal.h"

#include <iostream>
#include <string>
#include <vector>

#include "cli/show/outcome.h"
#include "cli/show/terminal.h"
#include "cli/show/training.h"
#include "cli/show/written.h"
#include "cli/verbs/verbs.h"

namespace dynslice::cli {
namespace {

void print_learning(const HealResult& result) {
  if (result.training) {
    print_table(training_header(true), training_rows(*result.training, true));
    std::cout << '\n' << training_summary(*result.training);
    return;
  }
  std::vector<std::vector<std::string>> rows;
  for (const DistilledLayer& layer : result.layers)
    rows.push_back({std::to_string(rows.size()), format_fixed(layer.before, 5), format_fixed(layer.after, 5)});
  print_table({"layer", "error before", "after"}, rows);
  std::cout << "\nErrors are relative squares of what leaves a layer, on held-out windows; layers learnt one after the "
               "other, on "
            << format_count(result.distilled_tokens) << " tokens together.\n";
}

}  // namespace

void run(const HealRequest& request, TerminalProgress& progress) {
  present(dynslice::run(request, progress), request.common, [&](const HealResult& result) {
    print_learning(result);
    std::cout << format_duration(result.seconds) << ", peak memory " << format_bytes(result.peak.rss) << ".\n";
    if (request.adapter) {
      std::cout << "Written to " << result.output.string()
                << ": an adapter for peft, PeftModel.from_pretrained(model, folder)\n";
    } else {
      print_written(request.common, result.output);
    }
  });
}

}  // namespace dynslice::cli
