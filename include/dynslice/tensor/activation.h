// The functions that the gate of an MLP passes through, or what its first matrix gives where it has no gate.
#pragma once

namespace dynslice {

enum class Activation {
  kSilu,      // x / (1 + exp(-x))
  kRelu,      // max(x, 0)
  kGeluTanh,  // x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2: Hendrycks and Gimpel 2016 (arXiv 1606.08415), section 2
};

}  // namespace dynslice
