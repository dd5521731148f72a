#include "dynslice/quantize/planned_checkpoint.h"

#include "aten.h"
#include "dynslice/checkpoint/tensor_copy.h"
#include "dynslice/model/tensor_layout.h"

namespace dynslice {

QuantizedLevels::QuantizedLevels(const LayerWalk& walk, const TokenWindows& text, const TrialQuantizer& quantizer,
                                 const std::vector<int>& levels) {
  TrialQuantizer keeping = quantizer;
  keeping.sink = [&](int bits, const MatrixRows& rows) {
    matrices_[bits].emplace(layer_tensor_name(rows.layer, rows.module + ".weight"), rows.matrix);
  };
  std::vector<std::vector<int>> plans;
  for (const int bits : levels) plans.emplace_back(static_cast<size_t>(walk.config().num_layers()), bits);
  plan_losses(walk, text.part(0, 1), keeping, plans);  // the matrices are all that is wanted of it
}

const QuantizedMatrix& QuantizedLevels::matrix(int bits, const std::string& name) const {
  return matrices_.at(bits).at(name);
}

PlannedCheckpoint::PlannedCheckpoint(const Checkpoint& source, const QuantizedLevels& levels, std::vector<int> bits)
    : source_(source), levels_(levels), bits_(std::move(bits)) {
  config_ = source.config();
  path_ = source.path();
}

at::Tensor PlannedCheckpoint::read_rows(const TensorInfo& info, int64_t begin, int64_t end,
                                        at::ScalarType dtype) const {
  const auto place = split_layer_name(info.name);
  if (!place || !is_linear_weight(place->second)) return source_.load_rows(info.name, info.shape, begin, end, dtype);
  const int bits = bits_[static_cast<size_t>(place->first)];
  return levels_.matrix(bits, info.name).narrow(begin, end - begin).values().to(dtype);
}

}  // namespace dynslice
