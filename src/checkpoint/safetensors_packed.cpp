// The packed linears of a Hugging Face folder: their parts found, checked, and read as one matrix.
#include <algorithm>
#include <cstring>

#include "aten.h"
#include "checkpoint/chunks.h"
#include "checkpoint/safetensors_checkpoint.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/dtype.h"

namespace dynslice {
namespace {

constexpr const char* kCodes = ".weight_packed";

}  // namespace

void SafetensorsCheckpoint::gather_packed() {
  std::vector<std::string> modules;
  for (const auto& [name, location] : tensors_) {
    if (name.ends_with(kCodes)) modules.push_back(name.substr(0, name.size() - std::strlen(kCodes)));
  }
  for (const std::string& module : modules) add_packed(module);
}

void SafetensorsCheckpoint::refuse(const Location& location, const std::string& what) const {
  throw_error(ErrorKind::kBadInput, files_[location.file].file().path().string(), ": tensor \"", location.stored_name,
              "\" ", what);
}

std::optional<SafetensorsCheckpoint::Location> SafetensorsCheckpoint::take(const std::string& name) {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) return std::nullopt;
  Location location = std::move(found->second);
  tensors_.erase(found);
  return location;
}

SafetensorsCheckpoint::Location SafetensorsCheckpoint::take_part(const Location& codes, const std::string& module,
                                                                 const std::string& part) {
  auto location = take(module + part);
  if (!location) refuse(codes, "has no \"" + module + part + "\" beside it; the checkpoint is incomplete");
  return std::move(*location);
}

// Rows and columns, which the packed words alone do not tell.
std::vector<int64_t> SafetensorsCheckpoint::read_shape(const Location& location) const {
  const SafetensorsFile& file = files_[location.file];
  const std::byte* bytes = file.bytes(file.entries().at(location.stored_name)).data();
  const bool is_long = location.info.dtype == "I64";
  if ((!is_long && location.info.dtype != "I32") || location.info.shape != std::vector<int64_t>{2})
    refuse(location, "has dtype " + location.info.dtype + " and shape " + describe_shape(location.info.shape) +
                         "; expected I64 and [2]");
  std::vector<int64_t> shape(2);
  for (size_t i = 0; i < shape.size(); ++i) {
    int32_t word = 0;
    if (is_long) {
      std::memcpy(&shape[i], bytes + i * sizeof shape[i], sizeof shape[i]);
    } else {
      std::memcpy(&word, bytes + i * sizeof word, sizeof word);
      shape[i] = word;
    }
  }
  return shape;
}

// The zero points, and with them the layout: the one that has as many words as there are.
void SafetensorsCheckpoint::place_zeros(const PackingGroup& group, const std::string& module, PackedLocation& packed) {
  PackedMatrix& matrix = packed.matrix;
  const std::vector<int64_t>& shape = packed.codes.info.shape;
  const int64_t rows = matrix.rows, columns = matrix.columns;
  const std::string name = module + ".weight_zero_point";
  packed.zeros = take(name);
  if (group.symmetric && packed.zeros)
    refuse(*packed.zeros, "is not expected: group " + group.name + " of config.json is symmetric");
  if (!group.symmetric && !packed.zeros)
    refuse(packed.codes, "has no \"" + name + "\" beside it, though group " + group.name + " is not symmetric");
  const bool is_plain = packed.zeros && packed.zeros->info.dtype == "I8";
  if (packed.zeros && !is_plain && packed.zeros->info.dtype != "I32")
    refuse(*packed.zeros, "has dtype " + packed.zeros->info.dtype + "; expected I32, or I8 where it is not packed");
  if (is_plain && packed.zeros->info.shape != std::vector<int64_t>{rows, matrix.groups()}) {
    refuse(*packed.zeros, "has shape " + describe_shape(packed.zeros->info.shape) + "; expected " +
                              describe_shape({rows, matrix.groups()}));
  }
  const auto zeros_fit = [&](CodeLayout layout) {
    const std::vector<int64_t> expected{packed_words(rows, matrix.bits, layout), matrix.groups()};
    return !packed.zeros || is_plain || packed.zeros->info.shape == expected;
  };
  const auto codes_fit = [&](CodeLayout layout) { return shape[1] == packed_words(columns, matrix.bits, layout); };
  for (const CodeLayout layout : {CodeLayout::kDense, CodeLayout::kWholeCodes}) {
    matrix.layout = layout;
    if (codes_fit(layout) && zeros_fit(layout)) return;
  }
  const bool codes_do = codes_fit(CodeLayout::kDense) || codes_fit(CodeLayout::kWholeCodes);
  const Location& odd = codes_do ? *packed.zeros : packed.codes;
  const std::vector<int64_t> expected = codes_do
                                            ? std::vector<int64_t>{packed_words(rows, matrix.bits), matrix.groups()}
                                            : std::vector<int64_t>{rows, packed_words(columns, matrix.bits)};
  refuse(odd, "has shape " + describe_shape(odd.info.shape) + "; a weight " + describe_shape({rows, columns}) + " of " +
                  std::to_string(matrix.bits) + " bits (group " + group.name + " of config.json) asks for " +
                  describe_shape(expected));
}

// Sizes and scales.
void SafetensorsCheckpoint::place_codes(const PackingGroup& group, const std::string& module, PackedLocation& packed) {
  const std::vector<int64_t>& words = packed.codes.info.shape;
  if (packed.codes.info.dtype != "I32" || words.size() != 2) {
    refuse(packed.codes,
           "has dtype " + packed.codes.info.dtype + " and shape " + describe_shape(words) + "; expected I32, a matrix");
  }
  packed.scales = take_part(packed.codes, module, ".weight_scale");
  const Location shape_at = take_part(packed.codes, module, ".weight_shape");
  const std::vector<int64_t> shape = read_shape(shape_at);
  // No word holds more than 32 codes: the sizes are no larger than the file allows.
  if (shape[0] != words[0] || shape[0] < 1 || shape[1] < 1 || shape[1] / 32 > words[1])
    refuse(shape_at, "says " + describe_shape(shape) + ", which " + describe_shape(words) + " words cannot hold");
  PackedMatrix& matrix = packed.matrix;
  matrix.rows = shape[0];
  matrix.columns = shape[1];
  matrix.bits = group.bits;
  matrix.group_size = group.group_size > 0 ? group.group_size : matrix.columns;
  if (matrix.columns % matrix.group_size != 0) {
    refuse(packed.codes, "has rows of " + std::to_string(matrix.columns) + " weights, which groups of " +
                             std::to_string(matrix.group_size) + " (group " + group.name +
                             " of config.json) do not divide");
  }
  const TensorInfo& scales = packed.scales.info;
  const std::vector<int64_t> expected{matrix.rows, matrix.groups()};
  if (weight_dtype_of_file(scales.dtype) && scales.shape == expected) return;
  refuse(packed.scales, "has dtype " + scales.dtype + " and shape " + describe_shape(scales.shape) +
                            "; expected F32, BF16 or F16, and " + describe_shape(expected));
}

void SafetensorsCheckpoint::add_packed(const std::string& module) {
  const std::string name = module + ".weight";
  PackedLocation packed;
  packed.codes = *take(module + kCodes);
  const std::string stored = stored_tensor(config_, name).name;  // which groups speak of
  const PackingGroup* group = packing_group_of(*config_.packing, stored.substr(0, stored.rfind('.')));
  if (group == nullptr)
    refuse(packed.codes, "is packed, though no group of config.json's quantization_config means it");
  const std::vector<std::string> parts = names_of_stored(config_, name);
  for (const std::string& part : parts) {
    if (tensors_.contains(part)) refuse(packed.codes, "stands beside \"" + name + "\": one of them must go");
  }
  if (const auto order = take(module + ".weight_g_idx")) refuse(*order, "reorders columns, which is not supported");
  place_codes(*group, module, packed);
  place_zeros(*group, module, packed);
  PackedMatrix& matrix = packed.matrix;
  const auto bytes_at = [&](const Location& location) {
    const SafetensorsFile& file = files_[location.file];
    return file.bytes(file.entries().at(location.stored_name)).data();
  };
  matrix.codes = bytes_at(packed.codes);
  if (packed.zeros)
    (packed.zeros->info.dtype == "I8" ? matrix.plain_zeros : matrix.packed_zeros) = bytes_at(*packed.zeros);
  const uint64_t bytes =
      packed.codes.info.bytes + packed.scales.info.bytes + (packed.zeros ? packed.zeros->info.bytes : 0);
  const std::string dtype = "I" + std::to_string(matrix.bits);
  if (parts.size() == 1) {
    tensors_.emplace(name, Location{{name, {matrix.rows, matrix.columns}, dtype, bytes}, packed.codes.file, {}, 0});
    packed_.emplace(name, std::move(packed));
    return;
  }
  const Location whole{{name, {matrix.rows, matrix.columns}, dtype, bytes}, packed.codes.file, {}, 0};
  for (Location& part : parts_of(whole, parts)) {
    packed_.emplace(part.info.name, packed);
    tensors_.emplace(part.info.name, std::move(part));
  }
}

at::Tensor SafetensorsCheckpoint::read_packed(const PackedLocation& packed, int64_t begin, int64_t end,
                                              at::ScalarType dtype) const {
  const PackedMatrix& matrix = packed.matrix;
  const SafetensorsFile& file = files_[packed.codes.file];
  const uint64_t offset = file.entries().at(packed.codes.stored_name).offset;
  const auto row_bytes = static_cast<uint64_t>(packed_words(matrix.columns, matrix.bits, matrix.layout)) * 4;
  at::Tensor values = at::empty({end - begin, matrix.columns}, dtype);
  const bool is_float = dtype == at::kFloat;
  const int64_t step = std::max<int64_t>(1, kChunkValues / matrix.columns);
  for (int64_t row = begin; row < end; row += step) {
    const int64_t count = std::min(step, end - row);
    at::Tensor part = values.narrow(0, row - begin, count);
    at::Tensor decoded = is_float ? part : at::empty_like(part, at::TensorOptions().dtype(at::kFloat));
    const at::Tensor scales = read_plain(packed.scales, row, row + count, at::kFloat);
    dequantize_rows(matrix, row, row + count, scales.const_data_ptr<float>(), decoded.data_ptr<float>());
    if (!is_float) part.copy_(decoded);
    file.file().release(offset + static_cast<uint64_t>(row) * row_bytes, static_cast<uint64_t>(count) * row_bytes);
  }
  if (packed.zeros) {
    const SafetensorsFile& zeros = files_[packed.zeros->file];
    const SafetensorsEntry& entry = zeros.entries().at(packed.zeros->stored_name);
    zeros.file().release(entry.offset, entry.bytes);
  }
  return values;
}

}  // namespace dynslice
