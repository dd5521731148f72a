#include "checkpoint/gguf_checkpoint.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "aten.h"
#include "checkpoint/chunks.h"
#include "checkpoint/gguf_form.h"
#include "dynslice/checkpoint/tensor_copy.h"
#include "dynslice/formats/gguf/ggml_dequantize.h"
#include "dynslice/model/architecture.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/support/check.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/dtype.h"

namespace dynslice {
namespace {

const std::map<std::string, std::string>& model_modules() {
  static const std::map<std::string, std::string> kModules = {
      {"token_embd", "model.embed_tokens"}, {"output_norm", "model.norm"}, {"output", "lm_head"}};
  return kModules;
}

std::string lookup(const std::map<std::string, std::string>& modules, const std::string& module) {
  const auto found = modules.find(module);
  return found == modules.end() ? std::string() : found->second;
}

// Row of the file that holds row `row` of Hugging Face's tensor: rotary pairs (j, j + width / 2) of a head lie side by
// side in the file.
int64_t interleaved_row(int64_t row, int64_t head_width) {
  const int64_t in_head = row % head_width, half = head_width / 2;
  return row - in_head + 2 * (in_head % half) + in_head / half;
}

// Decodes rows of a tensor as the file has them.
class RowDecoder {
 public:
  RowDecoder(const GgufFile& file, const GgufTensor& tensor, int64_t columns)
      : type_(tensor.type), bytes_(file.bytes(tensor)), columns_(columns) {
    const GgmlFormat& format = ggml_format(tensor.type);
    row_bytes_ = static_cast<size_t>(columns / format.values * format.bytes);
  }

  uint64_t row_bytes() const { return row_bytes_; }

  void decode(int64_t row, float* out) const {
    dequantize(type_, bytes_.subspan(static_cast<size_t>(row) * row_bytes_, row_bytes_),
               {out, static_cast<size_t>(columns_)});
  }

 private:
  GgmlType type_;
  std::span<const std::byte> bytes_;
  int64_t columns_;
  size_t row_bytes_ = 0;
};

// Rows [begin, end) into `out`, row_at(i) being the place of row i in the file.
template <typename RowAt>
void decode_rows(const RowDecoder& decoder, int64_t begin, int64_t end, int64_t columns, float* out, RowAt row_at) {
  at::parallel_for(begin, end, std::max<int64_t>(1, kGrainValues / columns), [&](int64_t from, int64_t to) {
    for (int64_t row = from; row < to; ++row) decoder.decode(row_at(row), out + (row - begin) * columns);
  });
}

bool is_number(const std::string& index) {
  return !index.empty() && std::ranges::all_of(index, [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

std::vector<std::string> hugging_face_names(const Architecture& architecture, const std::string& gguf_name) {
  const size_t dot = gguf_name.rfind('.');
  if (dot == std::string::npos) return {};
  const std::string kind = gguf_name.substr(dot), module = gguf_name.substr(0, dot);
  for (const Renaming& renamed : architecture.gguf_names) {
    const std::string end = "." + std::string(renamed.theirs);
    if (!renamed.is_whole || !gguf_name.starts_with("blk.") || !gguf_name.ends_with(end)) continue;
    const std::string index = gguf_name.substr(4, gguf_name.size() - 4 - end.size());
    if (is_number(index)) return {"model.layers." + index + "." + std::string(renamed.ours) + ".weight"};
  }
  if (kind != ".weight" && kind != ".bias") return {};
  if (!module.starts_with("blk.")) {
    const std::string name = lookup(model_modules(), module);
    return name.empty() ? std::vector<std::string>() : std::vector<std::string>{name + kind};
  }
  const size_t second = module.find('.', 4);
  if (second == std::string::npos) return {};
  const std::string index = module.substr(4, second - 4);
  if (!is_number(index)) return {};
  const auto name_of = [&](const LayerPart& part) {
    return "model.layers." + index + "." + std::string(part.module) + kind;
  };
  const std::string in_layer = module.substr(second + 1);
  const auto fusion = std::ranges::find(architecture.fusions, std::string_view(in_layer), &Fusion::gguf);
  if (fusion != architecture.fusions.end()) {
    std::vector<std::string> names;
    for (const Role role : fusion->roles) names.push_back(name_of(part_of(role)));
    return names;
  }
  const LayerPart* part = find_gguf_part(architecture, in_layer);
  return part == nullptr ? std::vector<std::string>() : std::vector<std::string>{name_of(*part)};
}

std::string gguf_name(const Architecture& architecture, const std::string& hugging_face_name) {
  const std::string kind = hugging_face_name.substr(hugging_face_name.rfind('.'));
  if (const auto place = split_layer_name(hugging_face_name)) {
    if (const LayerPart* part = find_part(place->second)) {
      const Fusion* fusion = fusion_of(architecture, part->role, &Fusion::gguf);
      const std::string_view module = fusion != nullptr ? fusion->gguf : gguf_module(architecture, *part);
      const auto renamed = std::ranges::find(architecture.gguf_names, part->module, &Renaming::ours);
      const bool is_whole = renamed != architecture.gguf_names.end() && renamed->is_whole;
      return "blk." + std::to_string(place->first) + "." + std::string(module) + (is_whole ? "" : kind);
    }
  }
  for (const auto& [ours, theirs] : model_modules()) {
    if (theirs + kind == hugging_face_name) return ours + kind;
  }
  throw_broken_invariant("gguf_name: ", hugging_face_name, " has no place in GGUF");
}

GgufCheckpoint::GgufCheckpoint(const std::filesystem::path& file) : file_(file) {
  path_ = file;
  config_ = read_config(file_);
  for (size_t i = 0; i < file_.tensors().size(); ++i) {
    const std::vector<std::string> names = hugging_face_names(architecture_of(config_), file_.tensors()[i].name);
    if (names.size() == 1) add_tensor(i, names.front());
    if (names.size() > 1) add_fused(i, names);
  }
}

// One matrix of the file that holds several of ours, whose rows the configuration tells.
void GgufCheckpoint::add_fused(size_t index, const std::vector<std::string>& names) {
  const GgufTensor& tensor = file_.tensors()[index];
  const int64_t layer = split_layer_name(names.front())->first;
  if (layer >= config_.num_layers()) return;
  std::vector<int64_t> expected;
  for (const std::string& name : names) {
    std::vector<int64_t> shape = shape_of_part(config_, layer, split_layer_name(name)->second);
    const int64_t first = expected.empty() ? 0 : expected.front();
    Location location{{name, shape, ggml_format(tensor.type).name, 0}, index, 0, first};
    if (tensor.shape.size() == shape.size() && tensor.shape.front() > 0) {
      location.info.bytes =
          tensor.bytes / static_cast<uint64_t>(tensor.shape.front()) * static_cast<uint64_t>(shape.front());
    }
    tensors_.emplace(name, std::move(location));
    expected = std::move(shape);
    expected.front() += first;
  }
  check_tensor_shape(path_, {tensor.name, tensor.shape, ggml_format(tensor.type).name, tensor.bytes}, expected);
}

void GgufCheckpoint::add_tensor(size_t index, const std::string& name) {
  const GgufTensor& tensor = file_.tensors()[index];
  Location location{{name, tensor.shape, ggml_format(tensor.type).name, tensor.bytes}, index, 0, 0};
  const auto place = split_layer_name(name);
  const LayerPart* part = place ? find_part(place->second) : nullptr;
  if (architecture_of(config_).pairs_rotary_rows && part != nullptr && part->is_rotary) {
    const bool known = place->first < config_.num_layers();
    const LayerShape& shape = config_.layers[known ? static_cast<size_t>(place->first) : 0];
    location.head_width = shape.head_dim;
    location.interleaved_heads = part->rows(shape) / shape.head_dim;
  }
  if (part != nullptr && part->taps != nullptr && tensor.shape.size() == 2)
    location.info.shape = {tensor.shape.front(), 1, tensor.shape.back()};
  GgufForm form = gguf_form(config_, name);
  const auto count = static_cast<int64_t>(form.rows.size()), parts = static_cast<int64_t>(form.column_parts.size());
  if ((count > 0 && tensor.shape.front() != count) || (parts > 0 && tensor.shape.back() != parts * form.part_width)) {
    throw_error(ErrorKind::kBadInput, path_.string(), ": tensor \"", tensor.name, "\" is ",
                describe_shape(tensor.shape), "; the sizes of the gated delta nets (ssm.*) ask for ",
                count > 0 ? std::to_string(count) + " rows" : std::to_string(parts * form.part_width) + " columns");
  }
  location.rows = inverse_order(form.rows);
  location.column_parts = inverse_order(form.column_parts);
  location.is_rate = form.is_rate;
  const int64_t heads = location.interleaved_heads;
  if (heads > 0 && tensor.shape.front() != heads * location.head_width) {
    throw_error(ErrorKind::kBadInput, path_.string(), ": tensor \"", tensor.name, "\" has ", tensor.shape.front(),
                " rows; its ", heads, " heads of width ", location.head_width, " ask for ",
                heads * location.head_width);
  }
  tensors_.emplace(name, std::move(location));
}

std::vector<TensorInfo> GgufCheckpoint::tensors() const {
  std::vector<TensorInfo> infos;
  for (const auto& [name, location] : tensors_) infos.push_back(location.info);
  return infos;
}

const TensorInfo* GgufCheckpoint::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second.info;
}

at::ScalarType GgufCheckpoint::storage_dtype() const {
  std::map<std::string, uint64_t> bytes;
  for (const auto& [name, location] : tensors_) bytes[location.info.dtype] += location.info.bytes;
  const std::string type = std::ranges::max_element(bytes, {}, [](const auto& entry) { return entry.second; })->first;
  return weight_dtype_of_file(type).value_or(at::kBFloat16);
}

at::Tensor GgufCheckpoint::read_rows(const TensorInfo& info, int64_t begin, int64_t end, at::ScalarType dtype) const {
  const Location& location = tensors_.at(info.name);
  if (info.shape.size() == 1) return read_vector(location, begin, end, dtype);
  at::Tensor rows = read_matrix(location, begin, end, dtype);
  if (info.shape.size() == 2) return rows;
  std::vector<int64_t> shape = info.shape;
  shape.front() = end - begin;
  return rows.view(shape);
}

int64_t GgufCheckpoint::row_in_file(const Location& location, int64_t row) const {
  if (!location.rows.empty()) return location.rows[static_cast<size_t>(row)];
  return location.first_row + (location.interleaved_heads > 0 ? interleaved_row(row, location.head_width) : row);
}

// A vector is one row of blocks; its values are what begin and end count.
at::Tensor GgufCheckpoint::read_vector(const Location& location, int64_t begin, int64_t end,
                                       at::ScalarType dtype) const {
  const GgufTensor& tensor = file_.tensors()[location.tensor];
  const int64_t size = tensor.shape.front();
  std::vector<float> whole(static_cast<size_t>(size));
  RowDecoder(file_, tensor, size).decode(0, whole.data());
  const at::Tensor values = at::empty({end - begin}, at::kFloat);
  float* out = values.data_ptr<float>();
  for (int64_t i = begin; i < end; ++i) out[i - begin] = whole[static_cast<size_t>(row_in_file(location, i))];
  file_.file().release(tensor.offset, tensor.bytes);
  return (location.is_rate ? values.neg().log() : values).to(dtype);
}

// Made chunk by chunk, so that a large matrix is never in memory twice, nor much of the file.
at::Tensor GgufCheckpoint::read_matrix(const Location& location, int64_t begin, int64_t end,
                                       at::ScalarType dtype) const {
  const GgufTensor& tensor = file_.tensors()[location.tensor];
  std::vector<int64_t> shape = tensor.shape;
  int64_t columns = 1;
  for (size_t i = 1; i < shape.size(); ++i) columns *= shape[i];
  const RowDecoder decoder(file_, tensor, columns);
  const auto row_at = [&](int64_t row) { return row_in_file(location, row); };
  shape.front() = end - begin;
  at::Tensor values = at::empty(shape, dtype);
  const bool is_float = dtype == at::kFloat;
  const int64_t step = std::max<int64_t>(1, kChunkValues / columns);
  for (int64_t row = begin; row < end; row += step) {
    const int64_t count = std::min(step, end - row);
    at::Tensor part = values.narrow(0, row - begin, count);
    at::Tensor decoded = is_float ? part : at::empty_like(part, at::TensorOptions().dtype(at::kFloat));
    decode_rows(decoder, row, row + count, columns, decoded.data_ptr<float>(), row_at);
    if (!location.column_parts.empty()) {
      part.copy_(reordered_columns(decoded, location.column_parts));
    } else if (!is_float) {
      part.copy_(decoded);
    }
    file_.file().release(tensor.offset + static_cast<uint64_t>(location.first_row + row) * decoder.row_bytes(),
                         static_cast<uint64_t>(count) * decoder.row_bytes());
  }
  return values;
}

}  // namespace dynslice
