// Digests for provenance and for verifying downloads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

struct XXH64_state_s;  // of xxHash

namespace dynslice {

// Lower-case hexadecimal SHA-256 of `content`.
std::string sha256(std::string_view content);

// Lower-case hexadecimal SHA-256 of a file, read in blocks; `on_read` is told the bytes of each. Throws as read_file
// does.
std::string sha256_of_file(const std::filesystem::path& path, const std::function<void(int64_t)>& on_read = {});

// The SHA-1 that git gives a file's content (a blob object); the hub's ETag of small files.
std::string git_blob_sha1_of_file(const std::filesystem::path& path);

// The 64-bit checksum XXH64 of bytes that come in parts, computed by the library xxHash. Finds damage at the speed of
// memory; no protection against somebody who means harm.
class Checksum {
 public:
  Checksum();
  void update(const void* bytes, size_t length);
  uint64_t value() const;
  std::string hex() const;  // sixteen digits

 private:
  struct Deleter {
    void operator()(XXH64_state_s* state) const;
  };
  std::unique_ptr<XXH64_state_s, Deleter> state_;
};

}  // namespace dynslice
