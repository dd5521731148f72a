#include "dynslice/jobs/inspect.h"

#include "dynslice/jobs/inputs.h"
#include "dynslice/model/checkpoint.h"

namespace dynslice {

OrderedJson to_json(const InspectResult& result) {
  const ModelConfig& config = result.config;
  OrderedJson json;
  json["path"] = result.path.string();
  json["model_type"] = config.model_type;
  json["beside"] = config.is_wrapped() ? OrderedJson(config.wrapper.value("model_type", "")) : OrderedJson(nullptr);
  json["ordinary_shapes"] = config.is_ordinary();
  json["layers"] = config.num_layers();
  json["hidden_size"] = config.hidden_size;
  json["vocab_size"] = config.vocab_size;
  json["tied_embeddings"] = config.tie_word_embeddings;
  json["max_position_embeddings"] = config.max_position_embeddings;
  json["parameters"] = result.cost.parameters;
  json["multiply_adds_per_token"] = result.cost.multiply_adds_per_token;
  json["bytes"] = result.bytes;
  json["bytes_by_dtype"] = result.bytes_by_dtype;
  for (const LayerShape& shape : config.layers) {
    json["shapes"].push_back({{"input_width", shape.input_width},
                              {"middle_width", shape.middle_width},
                              {"output_width", shape.output_width},
                              {"intermediate_size", shape.intermediate_size},
                              {"heads", shape.num_attention_heads},
                              {"key_value_heads", shape.num_key_value_heads}});
    if (shape.is_delta()) json["shapes"].back()["mixer"] = "gated_delta_net";
  }
  return json;
}

Outcome<InspectResult> run(const InspectRequest& options, ProgressSink& progress) {
  const auto checkpoint = open_model(options.common, progress);
  InspectResult result;
  result.path = checkpoint->path();
  result.config = checkpoint->config();
  result.cost = count_cost(result.config);
  for (const TensorInfo& tensor : checkpoint->tensors()) {
    result.bytes += tensor.bytes;
    result.bytes_by_dtype[tensor.dtype] += tensor.bytes;
  }
  return result;
}

}  // namespace dynslice
