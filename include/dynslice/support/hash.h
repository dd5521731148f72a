// Digests for provenance and for verifying downloads.
#pragma once

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

}  // namespace dynslice
