#include "dynslice/walk/residual_stream.h"

#include <atomic>
#include <optional>
#include <utility>

#include "aten.h"
#include "dynslice/support/log.h"
#include "dynslice/support/scratch_file.h"

namespace dynslice {

// Shared with the deleters of the tensors it hands out.
class ActivationStore::Impl : public std::enable_shared_from_this<Impl> {
 public:
  Impl(uint64_t memory_bytes, std::filesystem::path folder) : memory_bytes_(memory_bytes), folder_(std::move(folder)) {}

  // Takes `bytes` of the budget, if it has them.
  bool reserve(uint64_t bytes) {
    uint64_t used = used_.load();
    do {
      if (bytes > memory_bytes_ || used > memory_bytes_ - bytes) return false;
    } while (!used_.compare_exchange_weak(used, used + bytes));
    return true;
  }

  // The same values; `bytes` of the budget are free again with the last use of the result.
  at::Tensor in_memory(const at::Tensor& values, uint64_t bytes) {
    const auto free = [values, bytes, self = shared_from_this()](void*) { self->used_ -= bytes; };
    return at::from_blob(values.data_ptr(), values.sizes(), values.strides(), free, values.options(), values.device());
  }

  at::Tensor in_file(at::IntArrayRef sizes, at::ScalarType dtype, uint64_t bytes) {
    std::shared_ptr<std::byte> block = scratch().allocate(bytes);
    std::byte* address = block.get();
    return at::from_blob(
        address, sizes, [block = std::move(block)](void*) mutable { block.reset(); },
        at::TensorOptions().dtype(dtype).device(at::kCPU));
  }

  ScratchFile& scratch() {
    if (!scratch_) {
      scratch_.emplace(folder_);
      log(LogLevel::kInfo,
          "Activations beyond " + std::to_string(memory_bytes_ >> 20) + " MiB go to a file in " + folder_.string());
      if (scratch_->is_in_memory()) {
        log(LogLevel::kWarning, folder_.string() +
                                    " lies in memory (tmpfs), so nothing is saved there; choose a folder "
                                    "on a disk with --scratch-dir");
      }
    }
    return *scratch_;
  }

  bool is_spilled(const at::Tensor& chunk) const {
    return scratch_ && chunk.defined() && chunk.device().is_cpu() && scratch_->contains(chunk.const_data_ptr());
  }

  uint64_t used() const { return used_.load(); }
  uint64_t file_bytes() const { return scratch_ ? scratch_->file_bytes() : 0; }

 private:
  const uint64_t memory_bytes_;
  const std::filesystem::path folder_;
  std::atomic<uint64_t> used_{0};
  std::optional<ScratchFile> scratch_;
};

ActivationStore::ActivationStore(uint64_t memory_bytes, std::filesystem::path scratch_folder)
    : impl_(std::make_shared<Impl>(memory_bytes, std::move(scratch_folder))) {}

ActivationStore::~ActivationStore() = default;

at::Tensor ActivationStore::empty(at::IntArrayRef sizes, at::TensorOptions options) {
  uint64_t bytes = options.dtype().itemsize();
  for (const int64_t size : sizes) bytes *= static_cast<uint64_t>(size);
  if (bytes == 0) return at::empty(sizes, options);
  if (impl_->reserve(bytes)) return impl_->in_memory(at::empty(sizes, options), bytes);
  return impl_->in_file(sizes, c10::typeMetaToScalarType(options.dtype()), bytes);
}

at::Tensor ActivationStore::keep(const at::Tensor& values) {
  const uint64_t bytes = values.nbytes();
  if (bytes == 0 || impl_->is_spilled(values)) return values;
  if (impl_->reserve(bytes)) return impl_->in_memory(values.contiguous(), bytes);
  at::Tensor home = impl_->in_file(values.sizes(), values.scalar_type(), bytes);
  home.copy_(values);
  drop_pages(home);
  return home;
}

void ActivationStore::drop_pages(const at::Tensor& chunk) const {
  if (impl_->is_spilled(chunk)) ScratchFile::drop_pages(chunk.const_data_ptr(), chunk.nbytes());
}

uint64_t ActivationStore::bytes_in_memory() const { return impl_->used(); }
uint64_t ActivationStore::scratch_file_bytes() const { return impl_->file_bytes(); }

int64_t ResidualStream::tokens() const {
  int64_t count = 0;
  for (const at::Tensor& chunk : chunks) count += chunk.size(0) * chunk.size(1);
  return count;
}

at::Tensor ResidualStream::gather() const { return at::cat(chunks); }

void ResidualStream::replace(size_t index, const at::Tensor& values) {
  at::Tensor& chunk = chunks.at(index);
  // What was there goes first: its room, in memory or in the file, is the new values'.
  const at::Tensor kept = values;  // NOLINT(performance-unnecessary-copy-initialization): `values` may be `chunk`
  chunk.reset();
  chunk = store ? store->keep(kept) : kept;
}

at::Tensor ResidualStream::read(size_t index) const {
  const at::Tensor& chunk = chunks.at(index);
  if (!store) return chunk.to(device);
  const at::Tensor values = chunk.to(device, /*non_blocking=*/false, /*copy=*/true);
  store->drop_pages(chunk);
  return values;
}

void ResidualStream::visit(const std::function<void(const at::Tensor&)>& fn) const {
  for (const at::Tensor& chunk : chunks) {
    fn(chunk.to(device));
    if (store) store->drop_pages(chunk);
  }
}

void ResidualStream::transform(const std::function<at::Tensor(const at::Tensor&)>& fn) {
  for (size_t i = 0; i < chunks.size(); ++i) {
    const at::Tensor left = fn(chunks[i].to(device));
    if (store) store->drop_pages(chunks[i]);  // a copy of the stream may keep it
    replace(i, left);
  }
}

void visit_both(const ResidualStream& first, const ResidualStream& second,
                const std::function<void(const at::Tensor&, const at::Tensor&)>& fn) {
  for (size_t i = 0; i < first.chunks.size(); ++i) {
    fn(first.chunks[i].to(first.device), second.chunks.at(i).to(second.device));
    if (first.store) first.store->drop_pages(first.chunks[i]);
    if (second.store) second.store->drop_pages(second.chunks[i]);
  }
}

}  // namespace dynslice
