// Room beyond memory: blocks of a temporary file that are mapped into memory. The kernel may write them out, and
// nothing of the file remains after the process, however it ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>

namespace dynslice {

// $TMPDIR, else /var/tmp (on disk, where /tmp is often in memory), else /tmp.
[[nodiscard]] std::filesystem::path default_scratch_folder();

// Guarantees: the file has no name, so it is gone with its last user; its room on the disk is taken when a block is
// handed out, so that a full disk is an Error and never a signal at the first write.
class ScratchFile {
 public:
  // Throws kMissingData when no file can be made in `folder`, kOutOfResources when its disk is full.
  explicit ScratchFile(const std::filesystem::path& folder);

  // A block of at least `bytes` (> 0), aligned to pages, content undefined. It goes back to the file, to be handed out
  // again, with the last copy of the pointer, which may outlive this object. Throws kOutOfResources when the disk
  // lacks the room.
  std::shared_ptr<std::byte> allocate(uint64_t bytes);

  // Whether the pointer lies in a block of this file.
  [[nodiscard]] bool contains(const void* pointer) const;

  // Takes the block's pages out of the process's memory; what they hold stays in the file.
  static void drop_pages(const void* block, uint64_t bytes);

  [[nodiscard]] uint64_t file_bytes() const;  // of the file at its largest
  [[nodiscard]] bool is_in_memory() const;    // the folder is a tmpfs: its files take memory all the same

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace dynslice
