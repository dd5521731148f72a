// The lines of a text file that may be compressed by gzip, one at a time: of a large file only what is read is
// decompressed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

namespace dynslice {

// Guarantees: what is in memory does not depend on the file's size, nor on what it says of itself.
class GzipLines {
 public:
  // Throws kMissingData when the file does not exist, kBadInput when it cannot be opened. Lines longer than
  // `max_line_bytes` are refused.
  GzipLines(const std::filesystem::path& path, size_t max_line_bytes);
  ~GzipLines();
  GzipLines(const GzipLines&) = delete;
  GzipLines& operator=(const GzipLines&) = delete;

  // The next line without its newline; nothing after the last one. Throws kBadInput, naming file and line, when the
  // compressed data is broken or ends early, or the line is too long.
  std::optional<std::string> next();
  int64_t number() const { return number_; }  // of the line that `next` gave, from 1 on

 private:
  class Source;
  [[noreturn]] void fail(const std::string& what) const;
  bool fill();

  std::filesystem::path path_;
  size_t max_line_bytes_;
  std::unique_ptr<Source> source_;
  std::string block_;  // read and not given yet, from place_ on
  size_t place_ = 0;
  int64_t number_ = 0;
};

}  // namespace dynslice
