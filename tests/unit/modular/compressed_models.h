// What the tests of modular compression share, and those of what else weighs by gradients.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "dynslice/modular/modular.h"
#include "dynslice/plan/slice_plan.h"
#include "tiny_model.h"

namespace dynslice::testing {

inline SlicePlan plan_of_sizes(const ModelConfig& config, std::vector<int64_t> sizes) {
  SlicePlan plan;
  plan.method = WidthMethod::kModular;
  plan.hidden_size = plan.head_width = config.hidden_size;
  plan.intermediate_size = config.layers.front().intermediate_size;
  plan.dims = std::move(sizes);
  for (const int64_t size : plan.dims)
    plan.ratios.push_back(1 - static_cast<double>(size) / static_cast<double>(plan.intermediate_size));
  return plan;
}

inline SensitivitySource measured(const LayerWalk& walk, const TokenWindows& windows) {
  return SensitivitySource(windows.count, [&walk, windows] { return measure_sensitivity(walk, windows, 1 << 20); });
}

// The checkpoint that compressing gives, all of it: what is in no layer is the model's own.
inline MemoryCheckpoint compressed(const MemoryCheckpoint& model, const SlicePlan& plan, const TokenWindows& windows,
                                   SensitivitySource sensitivity, const LayerWalk& walk,
                                   const ModularOptions& options) {
  MemoryCheckpoint smaller(sliced_config(model.config(), plan));
  compress_layers(walk, plan, windows, sensitivity, options,
                  [&](const std::string& name, const at::Tensor& values) { smaller.put(name, values); });
  for (const TensorInfo& info : model.tensors()) {
    if (!split_layer_name(info.name)) smaller.put(info.name, model.load(info.name, info.shape, at::kFloat));
  }
  return smaller;
}

}  // namespace dynslice::testing
