// The functions that the gate of an MLP passes through.
#pragma once

namespace dynslice {

enum class Activation {
  kSilu,      // x / (1 + exp(-x))
  kGeluTanh,  // x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2: Hendrycks and Gimpel 2016 (arXiv 1606.08415), section 2
};

}  // namespace dynslice
