#include "dynslice/quantize/packed_checkpoint.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <map>
#include <span>

#include "aten.h"
#include "dynslice/checkpoint/tensor_copy.h"
#include "dynslice/formats/safetensors/packed_weights.h"
#include "dynslice/model/tensor_layout.h"

namespace dynslice {
namespace {

// codes [rows, columns] uint8 → [rows, words] int32.
at::Tensor packed(const at::Tensor& codes, int bits) {
  const at::Tensor whole = codes.contiguous();
  const int64_t rows = whole.size(0), columns = whole.size(1), words = packed_words(columns, bits);
  at::Tensor result = at::empty({rows, words}, at::kInt);
  const uint8_t* from = whole.const_data_ptr<uint8_t>();
  auto* to = result.mutable_data_ptr<int32_t>();
  at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      pack_codes({from + row * columns, static_cast<size_t>(columns)}, bits,
                 {to + row * words, static_cast<size_t>(words)});
    }
  });
  return result;
}

OrderedJson describe_weights(const QuantFormat& format) {
  OrderedJson weights = {{"num_bits", format.bits}, {"type", "int"}, {"symmetric", format.symmetric}};
  weights["strategy"] = format.group_size > 0 ? "group" : "channel";
  weights["group_size"] = format.group_size > 0 ? OrderedJson(format.group_size) : OrderedJson(nullptr);
  weights["dynamic"] = false;
  weights["actorder"] = nullptr;
  return weights;
}

std::string alternatives(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : "|") + word;
  return "(" + text + ")";
}

// "self_attn.q_proj" in a pattern.
std::string escaped(std::string module) {
  const size_t dot = module.find('.');
  return dot == std::string::npos ? module : module.replace(dot, 1, "\\.");
}

// Formats are few, and one holds for all matrices of many layers: one pattern for every set of modules and its layers.
struct Target {
  std::vector<std::string> modules, layers;
};

// The tensors of one packed matrix, which holds those of ours.
void add_packed(std::span<const OutputTensor> matrices, const QuantFormat& format, std::vector<OutputTensor>& tensors) {
  const int64_t columns = matrices.front().shape[1], groups = columns / grid_unit(format, columns);
  const auto add = [&](const char* part, int64_t row_codes, int64_t width, at::ScalarType dtype) {
    for (const OutputTensor& matrix : matrices) {
      const auto rows = [&](int64_t count) { return row_codes == 1 ? count : packed_words(count, format.bits); };
      tensors.push_back({matrix.name + part,
                         {rows(matrix.shape[0]), width},
                         dtype,
                         {matrix.stored_name() + part, 0, rows(matrix.stored.first_row)}});
    }
  };
  add("_packed", 1, packed_words(columns, format.bits), at::kInt);
  add("_scale", 1, groups, format.scale_dtype);
  if (!format.symmetric) add("_zero_point", 32, groups, at::kInt);  // packed down the rows
  const OutputTensor& first = matrices.front();
  tensors.push_back({first.name + "_shape", {2}, at::kLong, {first.stored_name() + "_shape"}});
}

// "self_attn.q_proj", or what the file has it in.
std::string stored_module(const ModelConfig& config, int64_t layer, const std::string& module) {
  const std::string stored = stored_tensor(config, layer_tensor_name(layer, module + ".weight")).name;
  const std::string place = "layers." + std::to_string(layer) + ".";
  const size_t begin = stored.find(place) + place.size();
  return stored.substr(begin, stored.rfind('.') - begin);
}

}  // namespace

std::vector<OutputTensor> packed_tensors(const ModelConfig& config, at::ScalarType dtype, const FormatOf& format_of) {
  const std::vector<OutputTensor> plain = checkpoint_tensors(config, dtype);
  std::vector<OutputTensor> tensors;
  for (size_t first = 0; first < plain.size();) {
    const auto place = split_layer_name(plain[first].name);
    if (!place || !is_linear_weight(place->second)) {
      tensors.push_back(plain[first++]);
      continue;
    }
    // Matrices that the file has as one are one there in packed form, too: their rows lie one behind the other.
    size_t end = first + 1;
    while (end < plain.size() && plain[end].stored_name() == plain[first].stored_name()) ++end;
    add_packed({plain.data() + first, end - first}, format_of(place->first, plain[first].shape[1]), tensors);
    first = end;
  }
  return tensors;
}

OrderedJson describe_packing(const ModelConfig& config, const FormatOf& format_of) {
  // By description, which names everything in which formats differ; in the order of the layers.
  std::vector<std::pair<QuantFormat, std::vector<Target>>> groups;
  for (int64_t layer = 0; layer < config.num_layers(); ++layer) {
    std::map<std::string, std::pair<QuantFormat, std::vector<std::string>>> formats;
    for (const LinearShape& matrix : linear_shapes(config, layer)) {
      const QuantFormat format = format_of(layer, matrix.columns);
      auto& entry = formats[describe(format)];
      entry.first = format;
      const std::string module = escaped(stored_module(config, layer, matrix.module));
      if (entry.second.empty() || entry.second.back() != module) entry.second.push_back(module);
    }
    for (const auto& [name, entry] : formats) {
      auto group = std::ranges::find_if(groups, [&](const auto& known) { return known.first == entry.first; });
      if (group == groups.end()) group = groups.insert(groups.end(), {entry.first, {}});
      auto target = std::ranges::find(group->second, entry.second, &Target::modules);
      if (target == group->second.end()) target = group->second.insert(target, {entry.second, {}});
      target->layers.push_back(std::to_string(layer));
    }
  }
  // Other parts have layers of their own.
  const std::string place = config.is_wrapped() ? R"(re:.*language_model\..*layers\.)" : R"(re:.*layers\.)";
  OrderedJson described = OrderedJson::object();
  for (const auto& [format, targets] : groups) {
    OrderedJson group;
    group["targets"] = OrderedJson::array();
    for (const Target& target : targets) {
      group["targets"].push_back(place + alternatives(target.layers) + "\\." + alternatives(target.modules) + "$");
    }
    group["weights"] = describe_weights(format);
    group["input_activations"] = nullptr;
    group["output_activations"] = nullptr;
    group["format"] = "pack-quantized";
    described["group_" + std::to_string(described.size())] = std::move(group);
  }
  OrderedJson json;
  json["quant_method"] = "compressed-tensors";
  json["format"] = "pack-quantized";
  json["quantization_status"] = "compressed";
  json["config_groups"] = std::move(described);
  json["ignore"] = {"lm_head"};
  return json;
}

void write_packed(const MatrixRows& rows, CheckpointWriter& writer) {
  const QuantizedMatrix& matrix = rows.matrix;
  const std::string weight = layer_tensor_name(rows.layer, rows.module) + ".weight";
  writer.write_rows(weight + "_packed", rows.first_row, packed(matrix.codes, matrix.format.bits));
  writer.write_rows(weight + "_scale", rows.first_row, matrix.scales);
  if (matrix.zero_points.defined()) {
    // Packed down the rows; 32 of them begin a word.
    writer.write_rows(weight + "_zero_point", packed_words(rows.first_row, matrix.format.bits),
                      packed(matrix.zero_points.t(), matrix.format.bits).t().contiguous());
  }
}

void write_packed_shapes(const ModelConfig& config, CheckpointWriter& writer) {
  for (int64_t layer = 0; layer < config.num_layers(); ++layer) {
    std::map<std::string, std::pair<std::string, int64_t>> rows;  // of what is stored, under the name of its first
    for (const LinearShape& matrix : linear_shapes(config, layer)) {
      const std::string name = layer_tensor_name(layer, matrix.module) + ".weight";
      auto& [first, count] = rows[stored_tensor(config, name).name];
      if (count == 0) first = name;
      count += matrix.rows;
    }
    for (const LinearShape& matrix : linear_shapes(config, layer)) {
      const std::string name = layer_tensor_name(layer, matrix.module) + ".weight";
      const auto& [first, count] = rows.at(stored_tensor(config, name).name);
      if (first == name) writer.write(name + "_shape", at::tensor({count, matrix.columns}, at::kLong));
    }
  }
}

}  // namespace dynslice
