// Hands out the matrices of a layer that are held, and quantized, as one.
#pragma once

#include <utility>
#include <vector>

#include "dynslice/quantize/quantize.h"

namespace dynslice {

class LayerSink {
 public:
  LayerSink(const ModelConfig& config, int64_t layer, MatrixSink sink)
      : layer_(layer), matrices_(linear_shapes(config, layer)), sink_(std::move(sink)) {}

  // The next matrices of the layer, whose rows `whole` has.
  void write(const QuantizedMatrix& whole) {
    for (int64_t row = 0; row < whole.rows(); ++next_) {
      const LinearShape& part = matrices_[next_];
      sink_({layer_, part.module, 0, whole.narrow(row, part.rows)});
      row += part.rows;
    }
  }

 private:
  int64_t layer_;
  std::vector<LinearShape> matrices_;
  MatrixSink sink_;
  size_t next_ = 0;
};

}  // namespace dynslice
