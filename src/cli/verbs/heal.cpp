#include "dynslice/jobs/heal.h"

#include <string>
#include <vector>

#include "cli/show/outcome.h"
#include "cli/show/terminal.h"
#include "cli/show/training.h"
#include "cli/show/written.h"
#include "cli/verbs/verbs.h"

namespace dynslice::cli {
namespace {

void print_learning(std::ostream& out, const HealResult& result) {
  if (result.training) {
    print_table(out, training_header(true), training_rows(*result.training, true));
    out << '\n' << training_summary(*result.training);
    return;
  }
  std::vector<std::vector<std::string>> rows;
  for (const DistilledLayer& layer : result.layers)
    rows.push_back({std::to_string(rows.size()), format_fixed(layer.before, 5), format_fixed(layer.after, 5)});
  print_table(out, {"layer", "error before", "after"}, rows);
  out << "\nErrors are relative squares of what leaves a layer, on held-out windows; layers learnt one after the "
         "other, on "
      << format_count(result.distilled_tokens) << " tokens together.\n";
}

}  // namespace

void run(const HealRequest& request, TerminalProgress& progress, std::ostream& out) {
  present(out, dynslice::run(request, progress), request.common, [&](const HealResult& result) {
    print_learning(out, result);
    out << format_duration(result.seconds) << ", peak memory " << format_bytes(result.peak.rss) << ".\n";
    if (request.adapter) {
      out << "Written to " << result.output.string()
          << ": an adapter for peft, PeftModel.from_pretrained(model, folder)\n";
    } else {
      print_written(out, request.common, result.output);
    }
  });
}

}  // namespace dynslice::cli
