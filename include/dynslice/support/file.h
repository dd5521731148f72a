// An open file or folder: the owner of its descriptor, and the loops around the system calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>

namespace dynslice {

// Guarantees: the descriptor is closed once, with its owner, and no program that we start inherits it; calls that a
// signal interrupts are repeated, and what was written in part is written on. A call that fails leaves its errno.
class File {
 public:
  File() = default;
  // Takes the descriptor over; a negative one is none.
  explicit File(int descriptor) : descriptor_(descriptor) {}
  // open(2) with these flags, O_CLOEXEC and mode 0644; is_open() says whether it succeeded.
  File(const std::filesystem::path& path, int flags);
  ~File() { close(); }
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;

  [[nodiscard]] bool is_open() const { return descriptor_ >= 0; }
  [[nodiscard]] int descriptor() const { return descriptor_; }
  // Leaves errno as it is.
  void close();

  // Writes all bytes, at the file's position or from the byte `offset` on. False when it failed.
  [[nodiscard]] bool write(std::span<const std::byte> bytes) const;
  [[nodiscard]] bool write_at(std::span<const std::byte> bytes, uint64_t offset) const;
  // Reads from the byte `offset` on, and gives how many bytes there were: fewer than asked for where the file ends.
  // Nothing when it failed.
  [[nodiscard]] std::optional<size_t> read_at(std::span<std::byte> bytes, uint64_t offset) const;
  // Brings content and metadata, or the content alone, to the disk. False when it failed.
  [[nodiscard]] bool sync() const;
  [[nodiscard]] bool sync_data() const;

  // Locks the file for this process alone, without waiting; the lock ends with the descriptor. False when it failed,
  // with errno EWOULDBLOCK when another process has it.
  [[nodiscard]] bool lock() const;
  // Whether the file is still the one under that name: another process may have removed, renamed or replaced it.
  [[nodiscard]] bool is_still_at(const std::filesystem::path& path) const;

 private:
  int descriptor_ = -1;
};

}  // namespace dynslice
