// What the tests of both ways of slicing share.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "aten.h"
#include "dynslice/plan/slice_plan.h"
#include "dynslice/slice/slice.h"
#include "tiny_model.h"
#include "unit/support/tensors.h"

namespace dynslice::testing {

inline constexpr RotationRefit kRefits[] = {RotationRefit::kNone, RotationRefit::kWriters, RotationRefit::kAll};

inline SlicePlan plan_of_widths(const ModelConfig& config, std::vector<int64_t> dims, int64_t head_width = 0) {
  SlicePlan plan;
  plan.hidden_size = config.hidden_size;
  plan.dims = std::move(dims);
  for (const int64_t dim : plan.dims)
    plan.ratios.push_back(1 - static_cast<double>(dim) / static_cast<double>(plan.hidden_size));
  plan.head_width = head_width > 0 ? head_width : config.hidden_size;
  return plan;
}

// The checkpoint of what `slicing` hands to its sink.
inline MemoryCheckpoint collect_tensors(const ModelConfig& config,
                                        const std::function<void(const TensorSink&)>& slicing) {
  MemoryCheckpoint sliced(config);
  std::map<std::string, std::vector<at::Tensor>> blocks;
  slicing({[&](const std::string& name, const at::Tensor& values) { sliced.put(name, values); },
           [&](const std::string& name, int64_t, const at::Tensor& rows) { blocks[name].push_back(rows.clone()); }});
  for (const auto& [name, rows] : blocks) sliced.put(name, at::cat(rows));
  return sliced;
}

// Every writer of the stream writes into a random subspace of 12 of the 32 dimensions: 12 directions hold everything.
inline MemoryCheckpoint model_in_a_subspace(const TinyOptions& options) {
  MemoryCheckpoint model = tiny_model(options);
  const at::Tensor axes = std::get<0>(at::linalg_qr(at::randn({32, 12}, at::kFloat)));
  const at::Tensor projection = at::matmul(axes, axes.t());
  for (const TensorInfo& info : model.tensors()) {
    const LayerPart* part = split_layer_name(info.name) ? find_part(split_layer_name(info.name)->second) : nullptr;
    const bool writes = part != nullptr && part->side == PartSide::kWrites;
    if (writes) model.at(info.name) = at::matmul(projection, model.at(info.name));
    if (info.name.find("embed") != std::string::npos) model.at(info.name) = at::matmul(model.at(info.name), projection);
  }
  return model;
}

}  // namespace dynslice::testing
