#include <iostream>
#include <map>

#include "cli/verbs/verbs.h"
#include "dynslice/jobs/inputs.h"

namespace dynslice::cli {
namespace {

OrderedJson describe_model(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  const ModelCost cost = count_cost(config);
  std::map<std::string, uint64_t> bytes_by_dtype;
  uint64_t bytes = 0;
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    bytes += tensor.bytes;
    bytes_by_dtype[tensor.dtype] += tensor.bytes;
  }
  OrderedJson json;
  json["path"] = checkpoint.path().string();
  json["model_type"] = config.model_type;
  json["ordinary_shapes"] = config.is_ordinary();
  json["layers"] = config.num_layers();
  json["hidden_size"] = config.hidden_size;
  json["vocab_size"] = config.vocab_size;
  json["tied_embeddings"] = config.tie_word_embeddings;
  json["max_position_embeddings"] = config.max_position_embeddings;
  json["parameters"] = cost.parameters;
  json["multiply_adds_per_token"] = cost.multiply_adds_per_token;
  json["bytes"] = bytes;
  json["bytes_by_dtype"] = bytes_by_dtype;
  for (const LayerShape& shape : config.layers) {
    json["shapes"].push_back({{"input_width", shape.input_width},
                              {"middle_width", shape.middle_width},
                              {"output_width", shape.output_width},
                              {"intermediate_size", shape.intermediate_size},
                              {"heads", shape.num_attention_heads},
                              {"key_value_heads", shape.num_key_value_heads}});
  }
  return json;
}

}  // namespace

void run(const InspectRequest& options, TerminalProgress& progress) {
  const auto checkpoint = open_model(options.common, progress);
  const OrderedJson json = describe_model(*checkpoint);
  if (options.common.json) {
    std::cout << to_text(json);
    return;
  }
  const ModelConfig& config = checkpoint->config();
  std::vector<std::vector<std::string>> rows = {
      {"model", json["path"].get<std::string>()},
      {"architecture", config.model_type + (config.is_ordinary() ? "" : ", shapes of its own (dynslice)")},
      {"layers", std::to_string(config.num_layers())},
      {"hidden size", std::to_string(config.hidden_size)},
      {"vocabulary",
       std::to_string(config.vocab_size) + (config.tie_word_embeddings ? ", head tied to the embedding" : "")},
      {"context", std::to_string(config.max_position_embeddings)},
      {"parameters", format_count(json["parameters"].get<int64_t>())},
      {"multiply-adds a token", format_count(json["multiply_adds_per_token"].get<int64_t>())}};
  std::string bytes = format_bytes(json["bytes"].get<uint64_t>()) + " (";
  for (const auto& [dtype, count] : json["bytes_by_dtype"].items()) {
    bytes += (bytes.ends_with('(') ? "" : ", ") + dtype + " " + format_bytes(count.get<uint64_t>());
  }
  rows.push_back({"bytes", bytes + ")"});
  for (const auto& row : rows) std::cout << row[0] << std::string(24 - row[0].size(), ' ') << row[1] << '\n';
}

}  // namespace dynslice::cli
