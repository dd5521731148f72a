// Memory for weights that stay: tensors packed one after the other in huge pages. One token at a time reads all of
// them, and with pages of 4 KiB, a quarter of that time goes into finding the pages (see docs/performance.md).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <memory>

namespace dynslice {

// Guarantees: tensors live as long as anyone holds them, the arena or not; they start at multiples of 64 bytes. Where
// the system gives no huge pages, pages are ordinary ones. CPU only.
class WeightArena {
 public:
  // A tensor of zeros. Throws std::bad_alloc.
  at::Tensor zeros(at::IntArrayRef sizes, at::ScalarType dtype);
  // A copy.
  at::Tensor keep(const at::Tensor& tensor);

 private:
  std::shared_ptr<std::byte> block_;  // that tensors are taken from
  size_t used_ = 0;
  size_t size_ = 0;
};

}  // namespace dynslice
