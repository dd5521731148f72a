#include "dynslice/tensor/weight_arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <new>

#include "aten.h"

namespace dynslice {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kAlignment = 64;
// Address space taken at a time. Pages take memory only once they are written.
constexpr size_t kBlock = size_t{256} << 20;

size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

// `size` bytes of zeros, a multiple of kHugePage, beginning at one.
std::shared_ptr<std::byte> map_block(size_t size) {
  const size_t mapped = size + kHugePage;
  void* start = ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) throw std::bad_alloc();
  const auto address = reinterpret_cast<uintptr_t>(start);
  auto* first = static_cast<std::byte*>(start) + (round_up(address, kHugePage) - address);
  ::madvise(first, size, MADV_HUGEPAGE);  // a wish: it works without
  return {first, [start, mapped](std::byte*) { ::munmap(start, mapped); }};
}

}  // namespace

at::Tensor WeightArena::zeros(at::IntArrayRef sizes, at::ScalarType dtype) {
  size_t bytes = c10::elementSize(dtype);
  for (const int64_t size : sizes) bytes *= static_cast<size_t>(size);
  bytes = round_up(std::max<size_t>(bytes, 1), kAlignment);
  if (used_ + bytes > size_) {
    size_ = std::max(kBlock, round_up(bytes, kHugePage));
    block_ = map_block(size_);
    used_ = 0;
  }
  std::byte* start = block_.get() + used_;
  used_ += bytes;
  return at::from_blob(start, sizes, [block = block_](void*) {}, at::TensorOptions().dtype(dtype));
}

at::Tensor WeightArena::keep(const at::Tensor& tensor) {
  return zeros(tensor.sizes(), tensor.scalar_type()).copy_(tensor);
}

}  // namespace dynslice
