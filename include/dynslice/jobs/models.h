// Which models dynslice takes, and what it does with them, as `dynslice models` tells it.
#pragma once

#include <string>
#include <vector>

#include "dynslice/jobs/outcome.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/support/json.h"
#include "dynslice/support/progress.h"

namespace dynslice {

// What holds for some architectures only; every verb that is not told of here takes all of them.
struct SupportedModel {
  std::string model_type;              // config.json's
  std::string class_name;              // transformers', which loads ordinary results
  std::string gguf;                    // general.architecture of its GGUF files, in and out; empty: none
  std::string gguf_of_unequal_layers;  // the same of results whose layers differ in size; empty: llama.cpp has none
  bool cuts_stream = false;            // slice --method slice
  bool removes_heads = false;          // slice --method modular --attention heads
  bool folds_maps = false;             // depth streamline --replace linear and linear-stream
};

struct ModelsResult {
  std::vector<SupportedModel> models;  // in the order of model/architecture.h
};
// As --json prints it.
[[nodiscard]] OrderedJson to_json(const ModelsResult& result);

[[nodiscard]] Outcome<ModelsResult> run(const ModelsRequest& request, ProgressSink& progress);

}  // namespace dynslice
