// GPTQ (arXiv 2210.17323): weights are rounded one column after the other, and what the rounding did to the outputs is
// made up for by the columns that are still to come.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "dynslice/quantize/quantized_matrix.h"

namespace dynslice {

struct GptqOptions {
  double damping = 0.01;  // added to the second moment's diagonal, in units of its mean
  bool act_order = true;  // columns of the largest inputs first, groups staying together; else from the first column on
};

// Minimizes tr((W - Ŵ) H (W - Ŵ)ᵀ) greedily, H being the inputs' second moment plus the damping. With H = L Lᵀ, L lower
// triangular, the cost of a row δ = w - ŵ is Σ_j (L_jj (w_j + Σ_{k>j} δ_k L_kj / L_jj - ŵ_j))²: from the last column to
// the first, ŵ_j is the nearest value to the sum in front of it (Babai's nearest plane). That is what GPTQ computes in
// the reverse order from the inverse of H, which is not needed here: one Cholesky factorization instead of an inverse
// between two. Grids are fitted group by group to the weights as they have become, weighted by L_jj², which is what an
// error costs there.
class Gptq {
 public:
  // `moment` [columns, columns] fp64, on any device: Σ_t x_t x_tᵀ of what the matrix reads; used up. `unit`: columns
  // whose grid is fitted together (grid_unit of the format).
  Gptq(at::Tensor moment, int64_t unit, const GptqOptions& options);

  // weight [rows, columns] fp32 on the CPU. Throws as round_to_nearest does.
  [[nodiscard]] QuantizedMatrix quantize(const at::Tensor& weight, const QuantFormat& format) const;

 private:
  int64_t columns_ = 0;
  int64_t unit_ = 0;
  at::Tensor column_at_;  // [columns] int64: the column that stands at each place of the factor
  at::Tensor factor_;     // L [columns, columns] fp32, in the order of places; the last place is rounded first
};

}  // namespace dynslice
