// Quantized models that are not written anywhere: for measuring many plans of one model.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "dynslice/model/checkpoint.h"
#include "dynslice/quantize/plan_losses.h"
#include "dynslice/quantize/quantize.h"

namespace dynslice {

// The matrices of all layers at every level of a plan, as codes in memory: a byte a weight and level.
class QuantizedLevels {
 public:
  // Quantizes every layer at every one of `levels`, as plan_losses does, which needs a window of text, of the walk's
  // length. Throws as that does.
  QuantizedLevels(const LayerWalk& walk, const TokenWindows& text, const TrialQuantizer& quantizer,
                  const std::vector<int>& levels);

  // A tensor of a layer, by its whole name.
  [[nodiscard]] const QuantizedMatrix& matrix(int bits, const std::string& name) const;

 private:
  std::map<int, std::map<std::string, QuantizedMatrix>> matrices_;  // by bits and name
};

// The model that a plan makes: the source, but for the matrices of its layers.
class PlannedCheckpoint final : public Checkpoint {
 public:
  // Both must outlive it. `bits` of every layer, each one of the levels.
  PlannedCheckpoint(const Checkpoint& source, const QuantizedLevels& levels, std::vector<int> bits);

  [[nodiscard]] std::vector<TensorInfo> tensors() const override { return source_.tensors(); }
  [[nodiscard]] const TensorInfo* find(const std::string& name) const override { return source_.find(name); }
  [[nodiscard]] std::vector<std::filesystem::path> files() const override { return source_.files(); }
  [[nodiscard]] at::ScalarType storage_dtype() const override { return source_.storage_dtype(); }

 protected:
  std::filesystem::path file_of(const TensorInfo&) const override { return path_; }
  at::Tensor read_rows(const TensorInfo& info, int64_t begin, int64_t end, at::ScalarType dtype) const override;

 private:
  const Checkpoint& source_;
  const QuantizedLevels& levels_;
  std::vector<int> bits_;
};

}  // namespace dynslice
