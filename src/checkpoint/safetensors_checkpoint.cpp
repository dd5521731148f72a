#include "checkpoint/safetensors_checkpoint.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "aten.h"
#include "dynslice/model/config_json.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/dtype.h"

namespace dynslice {
namespace {

constexpr uint64_t kMaxIndexBytes = 100'000'000;

bool file_exists(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

// Values copied before their pages of the file are given back: few beside a layer, many beside a system call.
constexpr int64_t kBlockValues = int64_t{1} << 22;

// Fills `values` [n] from `stored` values at `source`, block by block, so that hardly any of the file is in memory at
// the same time. `release(first byte, bytes)` is told of every block that has been read.
template <typename Release>
void copy_values(const std::byte* source, at::ScalarType stored, const at::Tensor& values, const Release& release) {
  const uint64_t item = c10::elementSize(stored);
  // The data of a file begins wherever its header ends: a plain copy is aligned whatever the source is.
  const bool is_aligned = reinterpret_cast<uintptr_t>(source) % item == 0;
  for (int64_t begin = 0; begin < values.numel(); begin += kBlockValues) {
    at::Tensor target = values.narrow(0, begin, std::min(kBlockValues, values.numel() - begin));
    const uint64_t first = static_cast<uint64_t>(begin) * item, bytes = static_cast<uint64_t>(target.numel()) * item;
    if (is_aligned) {
      void* block = const_cast<std::byte*>(source + first);  // is only read
      target.copy_(at::from_blob(block, target.sizes(), at::TensorOptions().dtype(stored)));
    } else {
      const at::Tensor block = at::empty(target.sizes(), stored);
      std::memcpy(block.data_ptr(), source + first, bytes);
      target.copy_(block);
    }
    release(first, bytes);
  }
}

// A shard's name is joined to the folder's path, so it must not lead out of it.
bool is_plain_name(const std::string& name) {
  return !name.empty() && name.size() < 256 && name.front() != '.' && name.find('/') == std::string::npos &&
         name.find('\\') == std::string::npos &&
         std::ranges::none_of(name, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
}

}  // namespace

SafetensorsCheckpoint::SafetensorsCheckpoint(const std::filesystem::path& folder) {
  path_ = folder;
  const std::filesystem::path config_file = folder / "config.json";
  config_ = read_config(config_file);
  other_files_.push_back(config_file);
  const std::filesystem::path single = folder / "model.safetensors", index = folder / "model.safetensors.index.json";
  if (file_exists(single)) {
    open_single(single);
  } else if (file_exists(index)) {
    open_sharded(index);
  } else {
    throw_error(ErrorKind::kMissingData, folder.string(), ": has neither model.safetensors nor ",
                "model.safetensors.index.json; other weight files are not read, save the model as safetensors");
  }
  if (config_.packing) gather_packed();
}

void SafetensorsCheckpoint::open_single(const std::filesystem::path& file) {
  files_.emplace_back(file);
  std::vector<std::string> names;
  for (const auto& [name, entry] : files_.front().entries()) names.push_back(name);
  recognise_wrapper(names);
  for (const std::string& name : names) add_tensor(name, 0);
}

void SafetensorsCheckpoint::open_sharded(const std::filesystem::path& index) {
  const Json json = parse_json(read_file(index, kMaxIndexBytes), index.string());
  other_files_.push_back(index);
  const JsonReader reader(json, index.string());
  const JsonReader weight_map = reader.object("weight_map");
  std::vector<std::string> names;
  for (const auto& [name, value] : weight_map.raw().items()) names.push_back(name);
  recognise_wrapper(names);
  std::map<std::string, size_t> shards;
  for (const auto& [name, value] : weight_map.raw().items()) {
    const std::string shard = value.is_string() ? value.get<std::string>() : "";
    if (!is_plain_name(shard)) {
      throw_error(ErrorKind::kBadInput, index.string(),
                  ": weight_map: a tensor's file must be the plain name of a file ", "in the folder; found ",
                  Json(shard).dump(-1, ' ', true));
    }
    const auto [place, is_new] = shards.emplace(shard, files_.size());
    if (is_new) files_.emplace_back(path_ / shard);
    if (!files_[place->second].entries().contains(name)) {
      throw_error(ErrorKind::kBadInput, index.string(), ": weight_map says that tensor ",
                  Json(name).dump(-1, ' ', true), " is in ", shard, ", which does not hold it");
    }
    add_tensor(name, place->second);
  }
}

// How the language model's tensors are called among others, and whether it has an output matrix: what configurations
// with other parts say of tied embeddings depends on who wrote them.
void SafetensorsCheckpoint::recognise_wrapper(const std::vector<std::string>& names) {
  if (!config_.is_wrapped()) return;
  const auto begins = [&](const char* prefix) {
    return std::ranges::any_of(names, [&](const std::string& name) { return name.starts_with(prefix); });
  };
  if (!begins("language_model.") && begins("model.language_model.")) config_.wrapper_names = WrapperNames::kInside;
  const std::string head = stored_tensor(config_, "lm_head.weight").name;
  config_.tie_word_embeddings = std::ranges::find(names, head) == names.end();
}

void SafetensorsCheckpoint::add_tensor(const std::string& name, size_t file) {
  const SafetensorsEntry& entry = files_[file].entries().at(name);
  const std::vector<std::string> ours = names_of_stored(config_, name);
  Location whole{{name, entry.shape, entry.dtype, entry.bytes}, file, name, 0};
  if (ours.size() > 1) {
    for (Location& part : parts_of(whole, ours)) tensors_.emplace(part.info.name, std::move(part));
    return;
  }
  whole.info.name = ours.front();
  tensors_.emplace(ours.front(), std::move(whole));
}

// Tensors of ours in one matrix of the file, whose rows the configuration tells; none where it has no such layer.
std::vector<SafetensorsCheckpoint::Location> SafetensorsCheckpoint::parts_of(
    const Location& whole, const std::vector<std::string>& names) const {
  const int64_t layer = split_layer_name(names.front())->first;
  if (layer >= config_.num_layers()) return {};
  std::vector<int64_t> expected;
  std::vector<Location> parts;
  for (const std::string& name : names) {
    const std::vector<int64_t> shape = shape_of_part(config_, layer, split_layer_name(name)->second);
    const int64_t first = expected.empty() ? 0 : expected.front();
    parts.push_back({{name, shape, whole.info.dtype, 0}, whole.file, whole.stored_name, first});
    expected = shape;
    expected.front() += first;
  }
  check_tensor_shape(file_of(whole), whole.info, expected);
  for (Location& part : parts) {
    part.info.bytes =
        whole.info.bytes / static_cast<uint64_t>(expected.front()) * static_cast<uint64_t>(part.info.shape.front());
  }
  return parts;
}

std::vector<TensorInfo> SafetensorsCheckpoint::tensors() const {
  std::vector<TensorInfo> infos;
  for (const auto& [name, location] : tensors_) infos.push_back(location.info);
  return infos;
}

const TensorInfo* SafetensorsCheckpoint::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second.info;
}

std::vector<std::filesystem::path> SafetensorsCheckpoint::files() const {
  std::vector<std::filesystem::path> paths = other_files_;
  for (const SafetensorsFile& file : files_) paths.push_back(file.file().path());
  return paths;
}

at::ScalarType SafetensorsCheckpoint::storage_dtype() const {
  constexpr std::array kTypes = {at::ScalarType::BFloat16, at::ScalarType::Half, at::ScalarType::Float};
  std::array<uint64_t, kTypes.size()> bytes{};
  for (const auto& [name, location] : tensors_) {
    const auto packed = packed_.find(name);
    const TensorInfo& info = packed == packed_.end() ? location.info : packed->second.scales.info;
    const auto type = weight_dtype_of_file(info.dtype);
    if (!type) continue;
    const auto* place = std::ranges::find(kTypes, *type);
    bytes[static_cast<size_t>(place - kTypes.begin())] += info.bytes;
  }
  return kTypes[static_cast<size_t>(std::ranges::max_element(bytes) - bytes.begin())];
}

std::filesystem::path SafetensorsCheckpoint::file_of(const TensorInfo& info) const {
  return file_of(location_of(info));
}

std::filesystem::path SafetensorsCheckpoint::file_of(const Location& location) const {
  return files_[location.file].file().path();
}

at::Tensor SafetensorsCheckpoint::read_rows(const TensorInfo& info, int64_t begin, int64_t end,
                                            at::ScalarType dtype) const {
  const auto packed = packed_.find(info.name);
  return packed == packed_.end() ? read_plain(location_of(info), begin, end, dtype)
                                 : read_packed(packed->second, location_of(info).first_row + begin,
                                               location_of(info).first_row + end, dtype);
}

at::Tensor SafetensorsCheckpoint::read_plain(const Location& location, int64_t begin, int64_t end,
                                             at::ScalarType dtype) const {
  const TensorInfo& info = location.info;
  const SafetensorsFile& file = files_[location.file];
  const SafetensorsEntry& entry = file.entries().at(location.stored_name);
  const auto stored = weight_dtype_of_file(info.dtype);
  if (!stored) {
    throw_error(ErrorKind::kBadInput, file.file().path().string(), ": tensor \"", info.name, "\" has dtype ",
                Json(info.dtype).dump(-1, ' ', true), "; supported are F32, F16, BF16");
  }
  std::vector<int64_t> shape = info.shape;
  const int64_t rows = entry.shape.empty() ? 1 : entry.shape.front();
  if (!shape.empty()) shape.front() = end - begin;
  const uint64_t row_bytes = rows > 0 ? entry.bytes / static_cast<uint64_t>(rows) : 0;
  const uint64_t offset = static_cast<uint64_t>(location.first_row + begin) * row_bytes;
  const std::byte* source = file.bytes(entry).data() + offset;
  at::Tensor values = at::empty(shape, dtype);
  copy_values(source, *stored, values.view({-1}),
              [&](uint64_t first, uint64_t bytes) { file.file().release(entry.offset + offset + first, bytes); });
  const double added = stored_tensor(config_, info.name).offset;
  return added == 0 ? values : values + added;
}

}  // namespace dynslice
