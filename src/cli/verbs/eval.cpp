#include "dynslice/jobs/eval.h"

#include <string>

#include "cli/show/evaluation.h"
#include "cli/show/outcome.h"
#include "cli/show/tasks.h"
#include "cli/verbs/verbs.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/tensor/dtype.h"

namespace dynslice::cli {
namespace {

void print_text(std::ostream& out, const TextEvaluation& text) {
  const Perplexity& perplexity = text.perplexity;
  out << title_of(text.source) << " " << describe(perplexity, text.scored);
  if (text.divergence) {
    out << "\n";
    print_divergence(out, *text.divergence, text.reference);
    out << "\n";
  }
  out << perplexity.windows << " windows of " << perplexity.seqlen << " tokens, "
      << (text.divergence ? perplexity.scored_tokens : perplexity.tokens)
      << (text.divergence ? " scored tokens, " : " tokens, ") << format_fixed(text.tokens_per_second, 0)
      << (text.divergence ? " tokens/s of both models in " : " tokens/s in ") << dtype_name(text.compute.dtype)
      << " on " << text.compute.device.str() << ", " << format_duration(text.seconds) << ", peak memory "
      << format_bytes(text.peak.rss) << ".\n";
}

}  // namespace

void run(const EvalRequest& request, TerminalProgress& progress, std::ostream& out) {
  // The tasks are told before the text is measured.
  const auto on_tasks = [&](const TaskEvaluation& tasks) {
    if (!request.common.json) print_tasks(out, tasks);
  };
  present(out, dynslice::run(request, progress, on_tasks), request.common, [&](const EvalResult& result) {
    if (result.text) print_text(out, *result.text);
  });
}

}  // namespace dynslice::cli
