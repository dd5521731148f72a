// Digests for provenance and for verifying downloads.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace dynslice {

// Lower-case hexadecimal SHA-256 of `content`.
std::string sha256(std::string_view content);

// Lower-case hexadecimal SHA-256 of a file, read in blocks. Throws as read_file does.
std::string sha256_of_file(const std::filesystem::path& path);

// The SHA-1 that git gives a file's content (a blob object); the hub's ETag of small files.
std::string git_blob_sha1_of_file(const std::filesystem::path& path);

}  // namespace dynslice
