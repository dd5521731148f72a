#include "dynslice/formats/gguf/gguf_file.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <set>
#include <utility>

#include "dynslice/support/check.h"
#include "dynslice/support/error.h"
#include "formats/gguf/gguf_value_type.h"

namespace dynslice {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF files are read in place");

constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;
constexpr uint64_t kMaxKeyBytes = 65535;        // the format's own limit
constexpr uint64_t kMaxTensorNameBytes = 1024;  // ggml keeps 64
constexpr uint32_t kMaxDimensions = 4;          // ggml's
// No size of a tensor comes near this; below it, products of two sizes and byte counts cannot overflow.
constexpr int64_t kMaxTensorValues = int64_t{1} << 50;

struct TypeEntry {
  GgmlType type;
  GgmlFormat format;
};

constexpr std::array<TypeEntry, 13> kTypes{{
    {GgmlType::kF32, {"F32", 1, 4}},
    {GgmlType::kF16, {"F16", 1, 2}},
    {GgmlType::kBF16, {"BF16", 1, 2}},
    {GgmlType::kQ4_0, {"Q4_0", 32, 18}},
    {GgmlType::kQ4_1, {"Q4_1", 32, 20}},
    {GgmlType::kQ5_0, {"Q5_0", 32, 22}},
    {GgmlType::kQ5_1, {"Q5_1", 32, 24}},
    {GgmlType::kQ8_0, {"Q8_0", 32, 34}},
    {GgmlType::kQ2_K, {"Q2_K", 256, 84}},
    {GgmlType::kQ3_K, {"Q3_K", 256, 110}},
    {GgmlType::kQ4_K, {"Q4_K", 256, 144}},
    {GgmlType::kQ5_K, {"Q5_K", 256, 176}},
    {GgmlType::kQ6_K, {"Q6_K", 256, 210}},
}};

const TypeEntry* find_type(uint32_t number) {
  const auto found =
      std::ranges::find_if(kTypes, [number](const TypeEntry& e) { return static_cast<uint32_t>(e.type) == number; });
  return found == kTypes.end() ? nullptr : &*found;
}

std::string supported_types() {
  std::string names;
  for (const TypeEntry& entry : kTypes) names += std::string(names.empty() ? "" : ", ") + entry.format.name;
  return names;
}

// Names end up in one-line messages and in file names of other formats.
bool is_printable(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return static_cast<unsigned char>(c) >= 0x20 && c != 0x7f; });
}

// Walks over the header; every step is checked against the end of the file before anything is read or allocated.
class HeaderReader {
 public:
  explicit HeaderReader(const MappedFile& file) : file_(file), bytes_(file.bytes()) {}

  uint64_t position() const { return position_; }
  uint64_t remaining() const { return bytes_.size() - position_; }

  [[noreturn]] void fail(uint64_t at, const std::string& expected, const std::string& found) const {
    throw_error(ErrorKind::kBadInput, file_.path().string(), ": at byte ", at, ": expected ", expected, ", found ",
                found, "; the file is damaged, incomplete or not a GGUF file this program reads");
  }

  template <typename T>
  T scalar(const std::string& what) {
    need(sizeof(T), what);
    T value;
    std::memcpy(&value, bytes_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }

  // A number of things that take at least `least_bytes` each, so that no count is believed the file cannot hold.
  uint64_t count(const std::string& what, uint64_t least_bytes) {
    const uint64_t at = position_;
    const auto value = scalar<uint64_t>("the number of " + what);
    if (value > remaining() / least_bytes) {
      fail(at, "at most " + std::to_string(remaining() / least_bytes) + " " + what, std::to_string(value));
    }
    return value;
  }

  std::string string(const std::string& what, uint64_t max_bytes = UINT64_MAX) {
    const uint64_t at = position_;
    const auto length = scalar<uint64_t>("the length of " + what);
    const uint64_t limit = std::min(max_bytes, remaining());
    if (length > limit) {
      fail(at, what + " of at most " + std::to_string(limit) + " bytes", std::to_string(length) + " bytes");
    }
    std::string value(reinterpret_cast<const char*>(bytes_.data() + position_), length);
    position_ += length;
    return value;
  }

  std::string name(const std::string& what, uint64_t max_bytes) {
    const uint64_t at = position_;
    std::string value = string(what, max_bytes);
    if (value.empty() || !is_printable(value)) fail(at, what + " of printable characters", "another byte or none");
    return value;
  }

 private:
  void need(uint64_t length, const std::string& what) const {
    if (length <= remaining()) return;
    fail(position_, std::to_string(length) + " bytes for " + what,
         "the end of the file after " + std::to_string(remaining()));
  }

  const MappedFile& file_;
  std::span<const std::byte> bytes_;
  uint64_t position_ = 0;
};

uint64_t least_bytes_of(uint32_t type) {
  switch (type) {
    case kUint8:
    case kInt8:
    case kBool:
      return 1;
    case kUint16:
    case kInt16:
      return 2;
    case kUint32:
    case kInt32:
    case kFloat32:
      return 4;
    default:
      return 8;  // strings begin with an eight byte length
  }
}

int64_t read_integer(HeaderReader& in, uint32_t type, const std::string& what) {
  switch (type) {
    case kUint8:
      return in.scalar<uint8_t>(what);
    case kInt8:
      return in.scalar<int8_t>(what);
    case kUint16:
      return in.scalar<uint16_t>(what);
    case kInt16:
      return in.scalar<int16_t>(what);
    case kUint32:
      return in.scalar<uint32_t>(what);
    case kInt32:
      return in.scalar<int32_t>(what);
    case kInt64:
      return in.scalar<int64_t>(what);
    default:
      break;
  }
  const uint64_t at = in.position();
  const auto value = in.scalar<uint64_t>(what);
  if (value > static_cast<uint64_t>(INT64_MAX)) in.fail(at, what + " below 2^63", std::to_string(value));
  return static_cast<int64_t>(value);
}

bool read_boolean(HeaderReader& in, const std::string& what) {
  const uint64_t at = in.position();
  const auto value = in.scalar<uint8_t>(what);
  if (value > 1) in.fail(at, what + " to be 0 or 1", std::to_string(value));
  return value == 1;
}

double read_float(HeaderReader& in, uint32_t type, const std::string& what) {
  return type == kFloat32 ? static_cast<double>(in.scalar<float>(what)) : in.scalar<double>(what);
}

template <typename T, typename Read>
GgufValue read_items(uint64_t count, Read read) {
  std::vector<T> items;
  items.reserve(count);
  for (uint64_t i = 0; i < count; ++i) items.push_back(read());
  return items;
}

GgufValue read_array(HeaderReader& in, const std::string& what) {
  const uint64_t at = in.position();
  const auto type = in.scalar<uint32_t>("the element type of " + what);
  if (type > kFloat64 || type == kArray) {
    in.fail(at, "an array of numbers, booleans or strings for " + what, "element type " + std::to_string(type));
  }
  const uint64_t count = in.count("elements of " + what, least_bytes_of(type));
  switch (type) {
    case kBool:
      return read_items<bool>(count, [&] { return read_boolean(in, what); });
    case kString:
      return read_items<std::string>(count, [&] { return in.string(what); });
    case kFloat32:
    case kFloat64:
      return read_items<double>(count, [&] { return read_float(in, type, what); });
    default:
      return read_items<int64_t>(count, [&] { return read_integer(in, type, what); });
  }
}

GgufValue read_value(HeaderReader& in, const std::string& what) {
  const uint64_t at = in.position();
  const auto type = in.scalar<uint32_t>("the type of " + what);
  switch (type) {
    case kBool:
      return read_boolean(in, what);
    case kString:
      return in.string(what);
    case kArray:
      return read_array(in, what);
    case kFloat32:
    case kFloat64:
      return read_float(in, type, what);
    default:
      break;
  }
  if (type > kFloat64) in.fail(at, "a value type from 0 to 12 for " + what, std::to_string(type));
  return read_integer(in, type, what);
}

void read_preamble(HeaderReader& in) {
  const auto magic = in.scalar<std::array<char, 4>>("the magic number");
  if (std::string_view(magic.data(), 4) != "GGUF") in.fail(0, "the magic number \"GGUF\"", "other bytes");
  const auto version = in.scalar<uint32_t>("the version");
  if ((version & 0xffffU) == 0) in.fail(4, "a little-endian file", "a big-endian one");
  if (version != 2 && version != 3) in.fail(4, "GGUF version 2 or 3", "version " + std::to_string(version));
}

std::map<std::string, GgufValue> read_metadata(HeaderReader& in, uint64_t count) {
  std::map<std::string, GgufValue> metadata;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t at = in.position();
    std::string key = in.name("a metadata key", kMaxKeyBytes);
    GgufValue value = read_value(in, "key \"" + key + "\"");
    if (!metadata.emplace(key, std::move(value)).second) {
      in.fail(at, "every metadata key once", "key \"" + key + "\" again");
    }
  }
  return metadata;
}

std::vector<int64_t> read_shape(HeaderReader& in, const std::string& what) {
  const uint64_t at = in.position();
  const auto dimensions = in.scalar<uint32_t>("the number of dimensions of " + what);
  if (dimensions < 1 || dimensions > kMaxDimensions) {
    in.fail(at, "1 to 4 dimensions of " + what, std::to_string(dimensions));
  }
  std::vector<int64_t> shape(dimensions);
  int64_t values = 1;
  for (uint32_t i = 0; i < dimensions; ++i) {
    const uint64_t size_at = in.position();
    const auto size = in.scalar<uint64_t>("a size of " + what);
    if (size < 1 || size > static_cast<uint64_t>(kMaxTensorValues / values)) {
      in.fail(size_at, "a size of " + what + " of 1 to " + std::to_string(kMaxTensorValues / values),
              std::to_string(size));
    }
    values *= static_cast<int64_t>(size);
    shape[dimensions - 1 - i] = static_cast<int64_t>(size);  // the file has the innermost first
  }
  return shape;
}

// One entry of the directory; its offset still counts from the start of the data.
GgufTensor read_tensor_entry(HeaderReader& in, uint64_t alignment) {
  GgufTensor tensor;
  tensor.name = in.name("a tensor name", kMaxTensorNameBytes);
  const std::string what = "tensor \"" + tensor.name + "\"";
  tensor.shape = read_shape(in, what);
  const uint64_t type_at = in.position();
  const auto number = in.scalar<uint32_t>("the type of " + what);
  const TypeEntry* entry = find_type(number);
  if (entry == nullptr)
    in.fail(type_at, what + " in one of " + supported_types(), "ggml type " + std::to_string(number));
  tensor.type = entry->type;
  const int64_t columns = tensor.shape.back();
  if (columns % entry->format.values != 0) {
    in.fail(type_at,
            what + " (" + entry->format.name + ") to have rows of a multiple of " +
                std::to_string(entry->format.values) + " values",
            std::to_string(columns));
  }
  uint64_t values = 1;
  for (const int64_t size : tensor.shape) values *= static_cast<uint64_t>(size);
  tensor.bytes = values / static_cast<uint64_t>(entry->format.values) * static_cast<uint64_t>(entry->format.bytes);
  const uint64_t offset_at = in.position();
  tensor.offset = in.scalar<uint64_t>("the offset of " + what);
  if (tensor.offset % alignment != 0) {
    in.fail(offset_at, what + " at a multiple of " + std::to_string(alignment),
            "offset " + std::to_string(tensor.offset));
  }
  return tensor;
}

uint64_t read_alignment(const HeaderReader& in, const std::map<std::string, GgufValue>& metadata) {
  const auto found = metadata.find("general.alignment");
  if (found == metadata.end()) return kDefaultAlignment;
  const auto* value = std::get_if<int64_t>(&found->second);
  if (value == nullptr || *value < 1 || *value > static_cast<int64_t>(kMaxAlignment) ||
      !std::has_single_bit(static_cast<uint64_t>(*value))) {
    in.fail(in.position(), "key \"general.alignment\" to be a power of two up to " + std::to_string(kMaxAlignment),
            value == nullptr ? "another type" : std::to_string(*value));
  }
  return static_cast<uint64_t>(*value);
}

// Turns offsets into positions in the file and checks that every extent is inside it.
void place_tensors(const HeaderReader& in, std::vector<GgufTensor>& tensors, uint64_t data_start, uint64_t file_size) {
  const uint64_t room = file_size > data_start ? file_size - data_start : 0;
  for (GgufTensor& tensor : tensors) {
    if (tensor.offset > room || tensor.bytes > room - tensor.offset) {
      in.fail(file_size,
              std::to_string(tensor.bytes) + " bytes of tensor \"" + tensor.name + "\" from byte " +
                  std::to_string(data_start) + " + " + std::to_string(tensor.offset),
              "the end of the file");
    }
    tensor.offset += data_start;
  }
}

void check_no_overlap(const HeaderReader& in, const std::vector<GgufTensor>& tensors) {
  std::vector<const GgufTensor*> order;
  order.reserve(tensors.size());
  for (const GgufTensor& tensor : tensors) order.push_back(&tensor);
  std::ranges::sort(order, {}, [](const GgufTensor* t) { return t->offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i]->offset < order[i - 1]->offset + order[i - 1]->bytes) {
      in.fail(order[i]->offset, "tensor \"" + order[i - 1]->name + "\" alone", "tensor \"" + order[i]->name + "\" too");
    }
  }
}

[[noreturn]] void throw_type_error(const GgufFile& file, const std::string& key, const char* expected) {
  throw_error(ErrorKind::kBadInput, file.path().string(), ": key \"", key,
              file.has(key) ? "\" must be " : "\" is missing; it must be ", expected);
}

template <typename T>
const T& typed(const GgufFile& file, const std::string& key, const char* expected) {
  const auto found = file.metadata().find(key);
  const T* value = found == file.metadata().end() ? nullptr : std::get_if<T>(&found->second);
  if (value == nullptr) throw_type_error(file, key, expected);
  return *value;
}

}  // namespace

const GgmlFormat& ggml_format(GgmlType type) {
  const TypeEntry* entry = find_type(static_cast<uint32_t>(type));
  DYNSLICE_CHECK(entry != nullptr, "ggml_format: a type that no file can have");
  return entry->format;
}

GgufFile::GgufFile(const std::filesystem::path& path) : file_(path) {
  HeaderReader in(file_);
  read_preamble(in);
  // An entry has at least a name (8 + 1), a dimension count and a type (4 + 4), a size and an offset (8 + 8); a
  // key and its value 8 + 1 + 4 + 1.
  const uint64_t tensor_count = in.count("tensors", 33);
  const uint64_t key_count = in.count("metadata keys", 14);
  metadata_ = read_metadata(in, key_count);
  const uint64_t alignment = read_alignment(in, metadata_);
  std::set<std::string> names;
  for (uint64_t i = 0; i < tensor_count; ++i) {
    const uint64_t at = in.position();
    tensors_.push_back(read_tensor_entry(in, alignment));
    const std::string& name = tensors_.back().name;
    if (!names.insert(name).second) in.fail(at, "every tensor once", "tensor \"" + name + "\" again");
  }
  const uint64_t data_start = (in.position() + alignment - 1) / alignment * alignment;
  place_tensors(in, tensors_, data_start, file_.size());
  check_no_overlap(in, tensors_);
}

const GgufTensor* GgufFile::find(const std::string& name) const {
  const auto found = std::ranges::find(tensors_, name, &GgufTensor::name);
  return found == tensors_.end() ? nullptr : &*found;
}

std::span<const std::byte> GgufFile::bytes(const GgufTensor& tensor) const {
  return file_.bytes().subspan(tensor.offset, tensor.bytes);
}

int64_t GgufFile::integer(const std::string& key) const { return typed<int64_t>(*this, key, "an integer"); }

double GgufFile::number(const std::string& key) const {
  const auto found = metadata_.find(key);
  if (found != metadata_.end()) {
    if (const auto* value = std::get_if<int64_t>(&found->second)) return static_cast<double>(*value);
  }
  return typed<double>(*this, key, "a number");
}

bool GgufFile::boolean(const std::string& key) const { return typed<bool>(*this, key, "a boolean"); }

const std::string& GgufFile::string(const std::string& key) const { return typed<std::string>(*this, key, "a string"); }

const std::vector<std::string>& GgufFile::strings(const std::string& key) const {
  return typed<std::vector<std::string>>(*this, key, "an array of strings");
}

const std::vector<int64_t>& GgufFile::integers(const std::string& key) const {
  return typed<std::vector<int64_t>>(*this, key, "an array of integers");
}

const std::vector<double>& GgufFile::numbers(const std::string& key) const {
  return typed<std::vector<double>>(*this, key, "an array of numbers");
}

}  // namespace dynslice
