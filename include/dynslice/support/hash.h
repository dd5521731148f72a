// Digests for provenance and for verifying downloads.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace dynslice {

// Lower-case hexadecimal SHA-256 of `content`.
std::string sha256(std::string_view content);

// Lower-case hexadecimal SHA-256 of a file, read in blocks; `on_read` is told the bytes of each. Throws as read_file
// does.
std::string sha256_of_file(const std::filesystem::path& path, const std::function<void(int64_t)>& on_read = {});

// The SHA-1 that git gives a file's content (a blob object); the hub's ETag of small files.
std::string git_blob_sha1_of_file(const std::filesystem::path& path);

// The 64-bit checksum XXH64 of bytes that come in parts. Finds damage at the speed of memory; no protection against
// somebody who means harm.
class Checksum {
 public:
  void update(const void* bytes, size_t length);
  uint64_t value() const;
  std::string hex() const;  // sixteen digits

 private:
  std::array<uint64_t, 4> lanes_ = {0x60EA27EEADC0B5D6, 0xC2B2AE3D27D4EB4F, 0, 0x61C8864E7A143579};
  std::array<unsigned char, 32> rest_{};  // bytes that do not fill a stripe yet
  uint64_t length_ = 0;
};

}  // namespace dynslice
