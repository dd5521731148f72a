// The GGUF container (version 2 and 3, little-endian): metadata and the directory of tensors. What the
// tensors mean is the model's business, what the tokenizer keys mean is the text room's.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "dynslice/support/files.h"

namespace dynslice {

// The block formats of ggml, with ggml's numbers.
enum class GgmlType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

// How a type packs its values: `values` of them in `bytes` bytes.
struct GgmlFormat {
  const char* name;  // ggml's: "Q4_K"
  int64_t values;
  int64_t bytes;
};
[[nodiscard]] const GgmlFormat& ggml_format(GgmlType type);

struct GgufTensor {
  std::string name;
  std::vector<int64_t> shape;  // outermost first, as PyTorch has it: [rows, columns]
  GgmlType type = GgmlType::kF32;
  uint64_t offset = 0;  // of the first byte, from the start of the file
  uint64_t bytes = 0;
};

// One metadata value. Integers of all widths are int64_t (a uint64 above 2^63 - 1 is refused), floats double.
using GgufValue = std::variant<bool, int64_t, double, std::string, std::vector<bool>, std::vector<int64_t>,
                               std::vector<double>, std::vector<std::string>>;

// Guarantees: every tensor's extent lies inside the file and does not overlap another, no count or length
// was trusted before it was compared with the file's size, names are unique.
class GgufFile {
 public:
  // Throws Error(kBadInput) "FILE: at byte N: expected ..., found ..." for anything that is not a whole,
  // little-endian GGUF v2/v3 file with known tensor types.
  explicit GgufFile(const std::filesystem::path& path);

  [[nodiscard]] const std::filesystem::path& path() const { return file_.path(); }
  [[nodiscard]] const std::map<std::string, GgufValue>& metadata() const { return metadata_; }
  [[nodiscard]] const std::vector<GgufTensor>& tensors() const { return tensors_; }
  [[nodiscard]] const GgufTensor* find(const std::string& name) const;  // nullptr when there is none
  [[nodiscard]] std::span<const std::byte> bytes(const GgufTensor& tensor) const;
  [[nodiscard]] const MappedFile& file() const { return file_; }

  // Typed metadata. The plain ones throw kBadInput naming file and key when it is missing or of another type;
  // an integer is accepted where a number is asked for.
  [[nodiscard]] bool has(const std::string& key) const { return metadata_.contains(key); }
  [[nodiscard]] int64_t integer(const std::string& key) const;
  [[nodiscard]] double number(const std::string& key) const;
  [[nodiscard]] bool boolean(const std::string& key) const;
  [[nodiscard]] const std::string& string(const std::string& key) const;
  [[nodiscard]] const std::vector<std::string>& strings(const std::string& key) const;
  [[nodiscard]] const std::vector<int64_t>& integers(const std::string& key) const;
  [[nodiscard]] const std::vector<double>& numbers(const std::string& key) const;

 private:
  MappedFile file_;
  std::map<std::string, GgufValue> metadata_;
  std::vector<GgufTensor> tensors_;
};

}  // namespace dynslice
