// One .safetensors file: its directory of tensors, checked, and its bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "dynslice/support/files.h"

namespace dynslice {

struct SafetensorsEntry {
  std::string dtype;  // as the file says: "BF16", "F8_E4M3"
  std::vector<int64_t> shape;
  uint64_t offset = 0;  // of the first byte, from the start of the file
  uint64_t bytes = 0;
};

// Guarantees: every extent lies inside the file; together they cover its data without hole or overlap; the extent of
// a known dtype is as large as its shape asks; names are printable.
class SafetensorsFile {
 public:
  // Throws kMissingData when the file does not exist, kBadInput "FILE: ..." for anything that is not a whole
  // safetensors file.
  explicit SafetensorsFile(const std::filesystem::path& path);

  [[nodiscard]] const std::map<std::string, SafetensorsEntry>& entries() const { return entries_; }
  [[nodiscard]] std::span<const std::byte> bytes(const SafetensorsEntry& entry) const {
    return file_.bytes().subspan(entry.offset, entry.bytes);
  }
  [[nodiscard]] const MappedFile& file() const { return file_; }

 private:
  MappedFile file_;
  std::map<std::string, SafetensorsEntry> entries_;
};

}  // namespace dynslice
