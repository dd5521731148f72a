// The activations of all windows at one layer boundary: what enters a layer, or what leaves it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <vector>

namespace dynslice {

// Where the chunks of streams live: in memory up to a budget that all streams of a run share, the rest in an unnamed
// scratch file. Guarantees: a chunk that is kept is never overwritten, wherever it lives, so that streams are copied
// by copying tensors; its room is free again when the last tensor that uses it is gone.
class ActivationStore {
 public:
  // `memory_bytes`: what chunks may take in memory. The scratch file is made when it is first needed.
  ActivationStore(uint64_t memory_bytes, std::filesystem::path scratch_folder);
  ~ActivationStore();

  // A chunk with room of its own and undefined values, for filling in.
  at::Tensor empty(at::IntArrayRef sizes, at::TensorOptions options);
  // The values in their home: as they are while the budget has room, else in the scratch file (on the host).
  // Throws kOutOfResources when the disk lacks the room.
  at::Tensor keep(const at::Tensor& values);
  // Takes the pages of a chunk in the scratch file out of memory; of any other chunk: nothing.
  void drop_pages(const at::Tensor& chunk) const;

  [[nodiscard]] uint64_t bytes_in_memory() const;
  [[nodiscard]] uint64_t scratch_file_bytes() const;  // at its largest; 0 when nothing was spilled

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

// Held as chunks of whole windows, each [B, T, width] fp32, in order. A layer replaces one chunk at a time, so
// that a walk needs one stream and the buffers of one chunk, and the width may change from layer to layer.
struct ResidualStream {
  // May be read as they are, wherever they live; they are changed by `replace` only. A spilled chunk is on the host
  // whatever the device, and its pages count as memory once they are read: `visit` and `transform` see to both.
  std::vector<at::Tensor> chunks;
  std::shared_ptr<ActivationStore> store;  // null: all chunks stay in memory
  at::Device device = at::kCPU;            // where the chunks are worked on

  // The stream as it is now, whatever becomes of this one: a chunk is replaced, never overwritten, so that both share
  // them until then.
  ResidualStream snapshot() const { return *this; }
  int64_t tokens() const;
  // All windows as one tensor [N, T, width]; for tests and small models.
  at::Tensor gather() const;

  // Lets chunk `index` be `values`, in memory or spilled.
  void replace(size_t index, const at::Tensor& values);
  // One chunk on `device`; of a spilled one a copy, so that its pages no longer count as memory.
  at::Tensor read(size_t index) const;
  // Hands every chunk to fn, on `device`.
  void visit(const std::function<void(const at::Tensor&)>& fn) const;
  // Replaces every chunk by fn(chunk), which gets it on `device`.
  void transform(const std::function<at::Tensor(const at::Tensor&)>& fn);
};

// Hands the chunks of two streams of the same windows to fn side by side, each on its stream's device.
void visit_both(const ResidualStream& first, const ResidualStream& second,
                const std::function<void(const at::Tensor&, const at::Tensor&)>& fn);

}  // namespace dynslice
