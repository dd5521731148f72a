#include "dynslice/jobs/inspect.h"

#include <string>
#include <vector>

#include "cli/show/outcome.h"
#include "cli/verbs/verbs.h"

namespace dynslice::cli {
namespace {

// "269.1 MB (BF16 269.1 MB)".
std::string describe_bytes(const InspectResult& result) {
  std::string text = format_bytes(result.bytes) + " (";
  for (const auto& [dtype, bytes] : result.bytes_by_dtype) {
    text += (text.ends_with('(') ? "" : ", ") + dtype + " " + format_bytes(bytes);
  }
  return text + ")";
}

std::string describe_architecture(const ModelConfig& config) {
  if (config.is_wrapped()) return config.model_type + ", within " + config.wrapper.value("model_type", "other parts");
  return config.model_type + (config.is_ordinary() ? "" : ", shapes of its own (dynslice)");
}

void print_model(std::ostream& out, const InspectResult& result) {
  const ModelConfig& config = result.config;
  const std::vector<std::vector<std::string>> rows = {
      {"model", result.path.string()},
      {"architecture", describe_architecture(config)},
      {"layers", std::to_string(config.num_layers())},
      {"hidden size", std::to_string(config.hidden_size)},
      {"vocabulary",
       std::to_string(config.vocab_size) + (config.tie_word_embeddings ? ", head tied to the embedding" : "")},
      {"context", std::to_string(config.max_position_embeddings)},
      {"parameters", format_count(result.cost.parameters)},
      {"multiply-adds a token", format_count(result.cost.multiply_adds_per_token)},
      {"bytes", describe_bytes(result)}};
  for (const auto& row : rows) out << row[0] << std::string(24 - row[0].size(), ' ') << row[1] << '\n';
}

}  // namespace

void run(const InspectRequest& request, TerminalProgress& progress, std::ostream& out) {
  present(out, dynslice::run(request, progress), request.common,
          [&](const InspectResult& result) { print_model(out, result); });
}

}  // namespace dynslice::cli
