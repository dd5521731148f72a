#include "dynslice/formats/safetensors/safetensors_file.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "dynslice/support/error.h"
#include "dynslice/support/json.h"
#include "dynslice/tensor/dtype.h"

namespace dynslice {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors are read in place");

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit

bool is_printable(const std::string& text) {
  return std::ranges::all_of(text, [](char c) { return static_cast<unsigned char>(c) >= 0x20 && c != 0x7f; });
}

// The JSON text between the length at the start of the file and the data.
std::string_view header_text(const MappedFile& file) {
  const auto fail = [&](const auto&... parts) {
    throw_error(ErrorKind::kBadInput, file.path().string(), ": ", parts...,
                "; the file is damaged, incomplete or not a safetensors file");
  };
  uint64_t length = 0;
  if (file.size() < sizeof length) fail("has ", file.size(), " bytes, too few for a header");
  std::memcpy(&length, file.bytes().data(), sizeof length);
  const uint64_t limit = std::min(kMaxHeaderBytes, file.size() - sizeof length);
  if (length < 2 || length > limit) {
    fail("says at byte 0 that its header has ", length, " bytes; expected 2 to ", limit);
  }
  return {reinterpret_cast<const char*>(file.bytes().data()) + sizeof length, length};
}

std::vector<int64_t> read_shape(const JsonReader& reader) {
  const auto shape = reader.raw().find("shape");
  if (shape == reader.raw().end() || !shape->is_array()) reader.fail("shape", "a list of sizes");
  std::vector<int64_t> sizes;
  for (const Json& size : *shape) {
    if (!size.is_number_unsigned() || size.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
      reader.fail("shape", "a list of sizes");
    }
    sizes.push_back(size.get<int64_t>());
  }
  return sizes;
}

// Product of the sizes and `unit`, or UINT64_MAX when it is larger than `limit`.
uint64_t bounded_product(const std::vector<int64_t>& sizes, uint64_t unit, uint64_t limit) {
  if (std::ranges::find(sizes, 0) != sizes.end()) return 0;
  uint64_t product = unit;
  for (const int64_t size : sizes) {
    if (static_cast<uint64_t>(size) > limit / product) return UINT64_MAX;
    product *= static_cast<uint64_t>(size);
  }
  return product;
}

SafetensorsEntry read_entry(const JsonReader& reader, uint64_t data_start, uint64_t data_bytes) {
  SafetensorsEntry entry;
  entry.dtype = reader.string("dtype");
  entry.shape = read_shape(reader);
  const auto offsets = reader.raw().find("data_offsets");
  const bool is_pair = offsets != reader.raw().end() && offsets->is_array() && offsets->size() == 2 &&
                       offsets->at(0).is_number_unsigned() && offsets->at(1).is_number_unsigned();
  const uint64_t begin = is_pair ? offsets->at(0).get<uint64_t>() : 1,
                 end = is_pair ? offsets->at(1).get<uint64_t>() : 0;
  if (begin > end || end > data_bytes) {
    reader.fail("data_offsets", "a pair [begin, end] inside the " + std::to_string(data_bytes) + " bytes of data");
  }
  entry.offset = data_start + begin;
  entry.bytes = end - begin;
  // The extents of an unknown dtype cannot be checked. Only F32, F16 and BF16 are ever loaded.
  const auto dtype = dtype_of_file(entry.dtype);
  if (dtype && bounded_product(entry.shape, c10::elementSize(*dtype), data_bytes) != entry.bytes) {
    reader.fail("data_offsets", "as far apart as shape and dtype (" + entry.dtype + ") ask");
  }
  return entry;
}

// The extents, in order, are the data: no hole, no overlap, nothing after the last.
void check_cover(const MappedFile& file, const std::map<std::string, SafetensorsEntry>& entries, uint64_t data_start) {
  std::vector<const std::pair<const std::string, SafetensorsEntry>*> order;
  for (const auto& entry : entries) order.push_back(&entry);
  std::ranges::sort(order, {}, [](const auto* e) { return std::pair(e->second.offset, e->second.bytes); });
  uint64_t position = data_start;
  for (const auto* entry : order) {
    if (entry->second.offset != position) {
      throw_error(ErrorKind::kBadInput, file.path().string(), ": tensor \"", entry->first, "\" begins at byte ",
                  entry->second.offset, "; expected ", position, ", where the tensor before it ends");
    }
    position += entry->second.bytes;
  }
  if (position != file.size()) {
    throw_error(ErrorKind::kBadInput, file.path().string(), ": has ", file.size(), " bytes; expected ", position,
                ", where the last tensor ends");
  }
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path) {
  const std::string_view text = header_text(file_);
  const std::string where = path.string() + ": header";
  const Json header = parse_json(text, where);
  const uint64_t data_start = sizeof(uint64_t) + text.size();
  const JsonReader reader(header, where);
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") continue;
    if (!is_printable(name)) throw_error(ErrorKind::kBadInput, where, ": a tensor's name holds control characters");
    const JsonReader entry(value, where + ": tensor \"" + name + "\"");
    entries_.emplace(name, read_entry(entry, data_start, file_.size() - data_start));
  }
  check_cover(file_, entries_, data_start);
}

}  // namespace dynslice
