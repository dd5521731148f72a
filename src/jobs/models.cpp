#include "dynslice/jobs/models.h"

#include "dynslice/model/architecture.h"

namespace dynslice {

OrderedJson to_json(const ModelsResult& result) {
  OrderedJson json;
  json["models"] = OrderedJson::array();
  for (const SupportedModel& model : result.models) {
    const auto or_null = [](const std::string& name) {
      return name.empty() ? OrderedJson(nullptr) : OrderedJson(name);
    };
    json["models"].push_back({{"model_type", model.model_type},
                              {"class", model.class_name},
                              {"gguf", or_null(model.gguf)},
                              {"gguf_of_unequal_layers", or_null(model.gguf_of_unequal_layers)},
                              {"slice", model.cuts_stream},
                              {"heads", model.removes_heads},
                              {"streamline_linear", model.folds_maps}});
  }
  return json;
}

Outcome<ModelsResult> run(const ModelsRequest&, ProgressSink&) {
  ModelsResult result;
  for (const Architecture& row : architectures()) {
    result.models.push_back({.model_type = std::string(row.model_type),
                             .class_name = std::string(row.class_name),
                             .gguf = std::string(row.gguf),
                             .gguf_of_unequal_layers = std::string(row.gguf_of_unequal_layers),
                             .cuts_stream = row.can_cut_stream(),
                             .removes_heads = row.can_remove_heads(),
                             .folds_maps = row.can_fold_maps()});
  }
  return result;
}

}  // namespace dynslice
