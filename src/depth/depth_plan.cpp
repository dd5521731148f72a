#include "dynslice/depth/depth_plan.h"

#include <algorithm>
#include <functional>

#include "aten.h"
#include "dynslice/checkpoint/tensor_copy.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/support/error.h"

namespace dynslice {
namespace {

// The first of `count` layers that counts for the merged one.
size_t first_merged(MergeRule rule, size_t count) { return rule == MergeRule::kLast ? count - 1 : 0; }

// Adds the values of layer k of `count`, in order from first_merged on, to `sum` (fp32), which is the merged layer's
// after the last.
void add_merged(MergeRule rule, size_t count, size_t k, const at::Tensor& values, at::Tensor& sum) {
  if (k == first_merged(rule, count)) {
    // Σ_{k ≥ low} θ_k - (count - 1) θ_low, or the sum alone.
    const double share = rule == MergeRule::kSum ? 2.0 - static_cast<double>(count) : 1.0;
    sum = values.to(at::kFloat) * share;
  } else {
    sum.add_(values.to(at::kFloat));
  }
  if (rule == MergeRule::kMean && k + 1 == count) sum.div_(static_cast<double>(count));
}

class DepthWriter {
 public:
  DepthWriter(const Checkpoint& source, const DepthPlan& plan, CheckpointWriter& writer, ProgressTask& task)
      : source_(source), plan_(plan), writer_(writer), task_(task) {}

  void write(const OutputTensor& tensor) {
    const auto place = split_layer_name(tensor.name);
    if (!place) return copy_tensor(source_, tensor.name, tensor, writer_, task_);
    const std::vector<int64_t>& sources = plan_.layers[static_cast<size_t>(place->first)];
    const std::string& suffix = place->second;
    if (plan_.replacement && sources.front() == plan_.replacement->layer) return write_replacement(tensor, suffix);
    const bool is_repaired = plan_.repair && sources.front() == plan_.repair->layer;
    if (is_repaired && suffix == "mlp_shortcut.weight") {
      writer_.write(tensor.name, plan_.repair->map);
    } else if (is_repaired && suffix.starts_with("mlp.down_proj.")) {
      writer_.write(tensor.name, at::matmul(plan_.repair->map, load(sources.front(), suffix, tensor.shape)));
    } else if (sources.size() > 1) {
      writer_.write(tensor.name, merged(sources, suffix, tensor.shape));
    } else {
      return copy_tensor(source_, layer_tensor_name(sources.front(), suffix), tensor, writer_, task_);
    }
    task_.advance(count_values(tensor));
  }

 private:
  at::Tensor load(int64_t layer, const std::string& suffix, const std::vector<int64_t>& shape) const {
    return source_.load(layer_tensor_name(layer, suffix), shape, at::kFloat);
  }

  at::Tensor merged(const std::vector<int64_t>& layers, const std::string& suffix,
                    const std::vector<int64_t>& shape) const {
    at::Tensor sum;
    for (size_t k = first_merged(plan_.rule, layers.size()); k < layers.size(); ++k) {
      add_merged(plan_.rule, layers.size(), k, load(layers[k], suffix, shape), sum);
    }
    return sum;
  }

  void write_replacement(const OutputTensor& tensor, const std::string& suffix) {
    for (const auto& [name, values] : layer_tensors(plan_.replacement->weights)) {
      if (name != suffix) continue;
      writer_.write(tensor.name, values);
      task_.advance(values.numel());
    }
  }

  const Checkpoint& source_;
  const DepthPlan& plan_;
  CheckpointWriter& writer_;
  ProgressTask& task_;
};

}  // namespace

DepthPlan plan_without(int64_t layers, const std::vector<int64_t>& dropped) {
  std::vector<bool> is_dropped(static_cast<size_t>(layers));
  for (const int64_t layer : dropped) {
    if (layer < 0 || layer >= layers) {
      throw_error(ErrorKind::kUsage, "layer ", layer, " does not exist: the model has layers 0 to ", layers - 1);
    }
    is_dropped[static_cast<size_t>(layer)] = true;
  }
  DepthPlan plan;
  for (int64_t layer = 0; layer < layers; ++layer) {
    if (!is_dropped[static_cast<size_t>(layer)]) plan.layers.push_back({layer});
  }
  if (plan.layers.empty()) throw_error(ErrorKind::kUsage, "all ", layers, " layers would go; one must stay");
  return plan;
}

void check_depth(const Checkpoint& checkpoint) {
  if (checkpoint.config().is_sliced()) {
    throw_error(ErrorKind::kUsage, checkpoint.path().string(),
                ": is sliced: its layers work in different bases and cannot take each other's places; make the dense "
                "model shallower first, then slice that");
  }
}

void check_whole_layers(const Checkpoint& checkpoint) {
  check_depth(checkpoint);
  if (checkpoint.config().has_whole_layers()) return;
  throw_error(
      ErrorKind::kUsage, checkpoint.path().string(),
      ": has a layer that is an MLP alone (of depth streamline --replace ffn or swiglu), which cannot be merged "
      "or trained to stand for others; begin with the model that it was made from");
}

ModelConfig depth_config(const ModelConfig& source, const DepthPlan& plan) {
  ModelConfig config = source;
  config.layers.clear();
  config.layer_is_sliding.clear();
  config.layer_is_unrotated.clear();
  for (const std::vector<int64_t>& layers : plan.layers) {
    for (const int64_t layer : layers) {
      if (source.layers[static_cast<size_t>(layer)] == source.layers[static_cast<size_t>(layers.front())]) continue;
      throw_error(ErrorKind::kUsage, "layers ", layers.front(), " and ", layer,
                  " have different shapes and cannot be merged");
    }
    // The highest layer's place in the stream is where the merged one's output goes on.
    config.layers.push_back(source.layers[static_cast<size_t>(layers.back())]);
    if (!source.layer_is_sliding.empty())
      config.layer_is_sliding.push_back(source.layer_is_sliding[static_cast<size_t>(layers.back())]);
    if (!source.layer_is_unrotated.empty())
      config.layer_is_unrotated.push_back(source.layer_is_unrotated[static_cast<size_t>(layers.back())]);
    if (plan.replacement && layers.front() == plan.replacement->layer)
      config.layers.back() = plan.replacement->weights.shape;
    if (plan.repair && plan.repair->on_stream && layers.front() == plan.repair->layer)
      config.layers.back().mlp_shortcut = {ShortcutKind::kMatrix, 0};
  }
  return config;
}

DecoderLayer merge_layers(MergeRule rule, const std::vector<int64_t>& layers,
                          const std::function<DecoderLayer(int64_t layer)>& next) {
  const size_t count = layers.size(), first = first_merged(rule, count);
  DecoderLayer sum;
  for (size_t k = first; k < count; ++k) {
    DecoderLayer layer = next(layers[k]);
    if (k == first) sum = layer;
    const auto terms = tensors_of(layer);
    const auto sums = tensors_of(sum);
    for (size_t t = 0; t < sums.size(); ++t) {
      if (terms[t]->defined()) add_merged(rule, count, k, *terms[t], *sums[t]);
    }
    sum.is_sliding = layer.is_sliding;
    sum.is_rotated = layer.is_rotated;
  }
  return sum;
}

DecoderLayer repaired(DecoderLayer layer, const Repair& repair) {
  const at::Tensor map = repair.map.to(layer.down_proj.weight.device());
  const auto fold = [&](const at::Tensor& values) {
    return values.defined() ? at::matmul(map, values.to(at::kFloat)).to(values.scalar_type()) : values;
  };
  layer.down_proj = {fold(layer.down_proj.weight), fold(layer.down_proj.bias)};
  if (repair.on_stream) {
    layer.shape.mlp_shortcut = {ShortcutKind::kMatrix, 0};
    layer.mlp_shortcut = {ShortcutKind::kMatrix, map, {}, {}};
  }
  return layer;
}

void write_depth(const Checkpoint& source, const DepthPlan& plan, at::ScalarType dtype, CheckpointWriter& writer,
                 ProgressSink& progress) {
  const ModelConfig config = depth_config(source.config(), plan);
  ProgressTask task(progress, "Writing", count_cost(config).parameters, "parameters");
  DepthWriter depth(source, plan, writer, task);
  for (const OutputTensor& tensor : checkpoint_tensors(config, dtype)) depth.write(tensor);
}

}  // namespace dynslice
