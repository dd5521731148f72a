// Files as the library reads and writes them: whole small files, read-only maps of large ones, and
// writes that appear under their final name only when they are complete.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace dynslice {

// The whole file as bytes. Throws kMissingData when it does not exist, kBadInput when it cannot be read
// or is larger than `max_bytes`.
[[nodiscard]] std::string read_file(const std::filesystem::path& path, uint64_t max_bytes = uint64_t{1} << 30);

// Writes `content` to a temporary file beside `path`, syncs it, calls `before_rename` when there is one, and renames
// the file to `path`. Throws kOutOfResources when the disk is full, kMissingData when the folder cannot be written.
void write_file_atomically(const std::filesystem::path& path, std::string_view content,
                           const std::function<void()>& before_rename = {});

// Flushes a finished file, or the entries of a folder, to the disk.
void sync_path(const std::filesystem::path& path);

// A file mapped into memory for reading. The pages are private: writing to them never reaches the file.
// Copies share the mapping, which lives as long as the last of them.
class MappedFile {
 public:
  // Throws kMissingData when the file does not exist, kBadInput when it cannot be opened or mapped.
  explicit MappedFile(const std::filesystem::path& path);

  [[nodiscard]] std::span<const std::byte> bytes() const { return {data_.get(), size_}; }
  [[nodiscard]] uint64_t size() const { return size_; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  // Keeps the mapping alive; for tensors that point into it.
  [[nodiscard]] const std::shared_ptr<const std::byte>& owner() const { return data_; }

  // Takes [offset, offset + length), and pages around it that were mapped with it, out of the process's memory. They
  // are read from the file again when they are touched; what was written to them is lost.
  void release(uint64_t offset, uint64_t length) const;

 private:
  std::filesystem::path path_;
  std::shared_ptr<const std::byte> data_;
  uint64_t size_ = 0;
};

}  // namespace dynslice
