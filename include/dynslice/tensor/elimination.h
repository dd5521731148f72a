// Which inner columns of a matrix product go, one after the other, and what that costs when the others are refitted:
// the optimal brain surgeon (Hassibi and Stork 1993) on whole neurons, in blocks that keep it a matter of products.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace dynslice {

// A neuron that went, and the loss after it: Σ_t w_t e_tᵀ G e_t / 2 with the errors e = z W - z' W' so far.
struct Removal {
  int64_t neuron = 0;
  double loss = 0;
};

// Of a product z W of inner activations z [n] and W [n, d]. Each step removes the neuron j of the least
// W_j G W_jᵀ / (C⁻¹)_jj, which is what the outputs lose at least, weighed by G, and refits the rows of all others.
// Neurons that can stand in for each other are therefore not removed together.
class Elimination {
 public:
  // `moment` C = Σ_t w_t z_t z_tᵀ [n, n] fp64 is used up; `weights` W [n, d]; `directions` G [d, d], or undefined for
  // I. `ridge`, in units of the mean diagonal of C, is a pull of the refitted rows towards W. Throws kBadInput when C
  // is no second moment, naming `where`.
  Elimination(at::Tensor moment, const at::Tensor& weights, const at::Tensor& directions, double ridge,
              const std::string& where);

  // Removes neurons until `count` are left.
  void reduce_to(int64_t count);

  // Removes all but these, whose choice was another's.
  void keep_only(const at::Tensor& kept);

  // What removing these together would cost, none of which is gone; and that done. For what goes as one, such as the
  // columns of an attention head.
  [[nodiscard]] double cost(const std::vector<int64_t>& neurons) const;
  void remove(const std::vector<int64_t>& neurons);

  // Those of reduce_to, in order.
  [[nodiscard]] const std::vector<Removal>& removals() const { return removals_; }
  // The neurons that are left, ascending [k] int64.
  [[nodiscard]] at::Tensor kept() const;
  // The refitted rows of the kept neurons [k, d] fp64: the least squares of z' W' against z W.
  [[nodiscard]] at::Tensor refitted() const;
  // (C + λ I)⁻¹ of the kept neurons alone, times `right` [n, d] (of which the kept rows count): [k, d] fp64.
  [[nodiscard]] at::Tensor solve(const at::Tensor& right) const;

 private:
  std::vector<int64_t> cheapest(int64_t most);
  // L with L Lᵀ a part of the inverse that belongs to some neurons.
  at::Tensor factor_of_part(const at::Tensor& part) const;

  std::string where_;
  at::Tensor inverse_;  // (C + λ I)⁻¹ of the neurons that are left [n, n] fp64; rows of the others are void
  at::Tensor weights_;  // [n, d] fp64
  at::Tensor weighed_;  // W S [n, d] fp64 with G = S Sᵀ; the weights themselves without G
  std::vector<bool> gone_;
  int64_t left_ = 0;
  std::vector<Removal> removals_;
};

}  // namespace dynslice
