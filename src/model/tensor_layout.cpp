#include "dynslice/model/tensor_layout.h"

#include <algorithm>
#include <span>

#include "dynslice/model/architecture.h"
#include "dynslice/model/decoder_layer.h"
#include "dynslice/support/check.h"

namespace dynslice {
namespace {

// Collects the tensors of one layer.
class LayerLayout {
 public:
  LayerLayout(std::vector<OutputTensor>& tensors, int64_t index, at::ScalarType dtype)
      : tensors_(tensors), index_(index), dtype_(dtype) {}

  void tensor(const std::string& suffix, std::vector<int64_t> shape) {
    tensors_.push_back({layer_tensor_name(index_, suffix), std::move(shape), dtype_});
  }
  void shortcut(const std::string& module, const ShortcutShape& shortcut, int64_t in, int64_t out) {
    if (shortcut.kind == ShortcutKind::kMatrix) tensor(module + ".weight", {out, in});
    const bool low_rank = shortcut.kind == ShortcutKind::kLowRank;
    if (shortcut.rank == 0) return;
    if (low_rank || shortcut.kind == ShortcutKind::kSymmetric) tensor(module + ".down.weight", {shortcut.rank, in});
    if (low_rank) tensor(module + ".up.weight", {out, shortcut.rank});
  }

 private:
  std::vector<OutputTensor>& tensors_;
  int64_t index_;
  at::ScalarType dtype_;
};

void add_layer(std::vector<OutputTensor>& tensors, const ModelConfig& config, int64_t index, at::ScalarType dtype) {
  const LayerShape& shape = config.layers.at(static_cast<size_t>(index));
  LayerLayout layer(tensors, index, dtype);
  for (const LayerPart& part : layer_parts()) {
    if (!part.is_in(shape)) continue;
    const std::vector<int64_t> sizes = part.sizes(shape);
    const std::string module(part.module);
    layer.tensor(module + ".weight", sizes);
    if (part.has_bias(config)) layer.tensor(module + ".bias", {sizes.front()});
  }
  layer.shortcut("attn_shortcut", shape.attn_shortcut, shape.input_width, shape.middle_width);
  layer.shortcut("mlp_shortcut", shape.mlp_shortcut, shape.middle_width, shape.output_width);
}

}  // namespace

std::vector<OutputTensor> linear_weights(const ModelConfig& config, int64_t layer, at::ScalarType dtype) {
  std::vector<OutputTensor> tensors;
  add_layer(tensors, config, layer, dtype);
  std::erase_if(tensors, [](const OutputTensor& tensor) { return !is_linear_weight(tensor.name); });
  return tensors;
}

bool is_linear_weight(const std::string& name) {
  const auto place = split_layer_name(name);
  const LayerPart* part = find_part(place ? place->second : name);
  return part != nullptr && part->is_linear() && name.ends_with(".weight");
}

std::string describe_shape(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

std::vector<OutputTensor> checkpoint_tensors(const ModelConfig& config, at::ScalarType dtype) {
  std::vector<OutputTensor> tensors;
  tensors.push_back({"model.embed_tokens.weight", {config.vocab_size, config.embedding_columns()}, dtype});
  if (config.position_rows > 0)
    tensors.push_back({"model.embed_positions.weight", {config.position_rows, config.embedding_columns()}, dtype});
  if (config.has_embedding_rotation) {
    tensors.push_back({"model.embed_rotation.weight", {config.embedding_width, config.hidden_size}, dtype});
  }
  for (int64_t i = 0; i < config.num_layers(); ++i) add_layer(tensors, config, i, dtype);
  if (config.has_final_norm_weight) tensors.push_back({"model.norm.weight", {config.head_width}, dtype});
  if (config.has_centred_norms && !config.has_head_rotation)
    tensors.push_back({"model.norm.bias", {config.head_width}, dtype});
  if (config.has_head_rotation) {
    tensors.push_back({"model.head_rotation.weight", {config.hidden_size, config.head_width}, dtype});
    if (config.has_centred_norms) tensors.push_back({"model.head_rotation.bias", {config.hidden_size}, dtype});
  }
  if (!config.tie_word_embeddings) {
    tensors.push_back({"lm_head.weight", {config.vocab_size, config.head_columns()}, dtype});
  }
  for (OutputTensor& tensor : tensors) tensor.stored = stored_tensor(config, tensor.name);
  return tensors;
}

int64_t count_values(const OutputTensor& tensor) {
  int64_t values = 1;
  for (const int64_t size : tensor.shape) values *= size;
  return values;
}

uint64_t count_bytes(const OutputTensor& tensor) {
  return static_cast<uint64_t>(count_values(tensor)) * c10::elementSize(tensor.dtype);
}

std::optional<std::pair<int64_t, std::string>> split_layer_name(const std::string& name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  const size_t dot = name.find('.', kPrefix.size());
  return std::pair{static_cast<int64_t>(std::stoll(name.substr(kPrefix.size(), dot - kPrefix.size()))),
                   name.substr(dot + 1)};
}

std::vector<int64_t> shape_of_part(const ModelConfig& config, int64_t layer, const std::string& suffix) {
  const LayerPart* part = find_part(suffix);
  DYNSLICE_CHECK(part != nullptr, "no part of a layer is called ", suffix);
  const LayerShape& shape = config.layers.at(static_cast<size_t>(layer));
  if (!suffix.ends_with(".weight")) return {part->rows(shape)};
  return part->sizes(shape);
}

namespace {

constexpr std::string_view kModel = "model.", kOutside = "language_model.", kInside = "model.language_model.",
                           kFinalNorm = "norm.";

// The name among other parts of a tensor of the language model.
std::string wrapped_name(const ModelConfig& config, const std::string& name) {
  if (!config.is_wrapped()) return name;
  if (config.wrapper_names == WrapperNames::kOutside) return std::string(kOutside) + name;
  return name.starts_with(kModel) ? std::string(kInside) + name.substr(kModel.size()) : name;
}

// The other way round; nothing for tensors of other parts.
std::optional<std::string> unwrapped_name(const ModelConfig& config, const std::string& stored) {
  if (!config.is_wrapped()) return stored;
  if (config.wrapper_names == WrapperNames::kOutside) {
    return stored.starts_with(kOutside) ? std::optional(stored.substr(kOutside.size())) : std::nullopt;
  }
  if (stored.starts_with(kInside)) return std::string(kModel) + stored.substr(kInside.size());
  return stored.starts_with(kModel) ? std::nullopt : std::optional(stored);
}

// Of a name of ours, as the architecture's files begin it and call its final norm.
std::string with_stem(const Architecture& architecture, const std::string& name) {
  if (!name.starts_with(kModel)) return name;
  std::string rest = name.substr(kModel.size());
  if (rest.starts_with(kFinalNorm)) rest = std::string(architecture.final_norm) + rest.substr(kFinalNorm.size() - 1);
  return std::string(architecture.stem) + rest;
}

// The other way round.
std::string without_stem(const Architecture& architecture, const std::string& stored) {
  if (!stored.starts_with(architecture.stem)) return stored;
  const std::string rest = stored.substr(architecture.stem.size());
  const std::string final_norm = std::string(architecture.final_norm) + ".";
  if (rest.starts_with(final_norm))
    return std::string(kModel) + std::string(kFinalNorm) + rest.substr(final_norm.size());
  return std::string(kModel) + rest;
}

// As a checkpoint of the language model alone stores it, but for the stem.
StoredTensor stored_alone(const ModelConfig& config, const std::string& name) {
  const Architecture& architecture = architecture_of(config);
  if (!config.is_ordinary()) return {name};
  const auto place = split_layer_name(name);
  if (!place) return {name, name == "model.norm.weight" ? architecture.norm_offset : 0};
  const LayerPart* part = find_part(place->second);
  if (part == nullptr) return {name};
  const auto [layer, suffix] = *place;
  const std::string kind = suffix.substr(suffix.rfind('.'));
  if (const Fusion* fusion = fusion_of(architecture, part->role, &Fusion::module)) {
    StoredTensor stored{layer_tensor_name(layer, std::string(fusion->module) + kind)};
    for (const Role role : fusion->roles) {
      if (role == part->role) break;
      stored.first_row += part_of(role).rows(config.layers.at(static_cast<size_t>(layer)));
    }
    return stored;
  }
  const auto renamed = std::ranges::find(architecture.names, part->module, &Renaming::ours);
  const double offset = kind == ".weight" && is_norm(part->role) ? architecture.norm_offset : 0;
  if (renamed == architecture.names.end()) return {name, offset};
  return {layer_tensor_name(layer, std::string(renamed->theirs) + (renamed->is_whole ? "" : kind)), offset};
}

}  // namespace

StoredTensor stored_tensor(const ModelConfig& config, const std::string& name) {
  StoredTensor stored = stored_alone(config, name);
  if (config.is_ordinary()) stored.name = with_stem(architecture_of(config), stored.name);
  stored.name = wrapped_name(config, stored.name);
  return stored;
}

std::vector<std::string> names_of_stored(const ModelConfig& config, const std::string& whole_name) {
  const auto alone = unwrapped_name(config, whole_name);
  if (!alone) return {whole_name};
  const std::string stored = config.is_ordinary() ? without_stem(architecture_of(config), *alone) : *alone;
  const auto place = split_layer_name(stored);
  if (!config.is_ordinary() || !place) return {stored};
  const Architecture& architecture = architecture_of(config);
  const auto is_its_name = [&](const Renaming& name) { return name.is_whole && name.theirs == place->second; };
  if (const auto whole = std::ranges::find_if(architecture.names, is_its_name); whole != architecture.names.end())
    return {layer_tensor_name(place->first, std::string(whole->ours) + ".weight")};
  const size_t dot = place->second.rfind('.');
  if (dot == std::string::npos) return {stored};
  const std::string_view module = std::string_view(place->second).substr(0, dot);
  const std::string kind = place->second.substr(dot);
  const auto fusion = std::ranges::find(architecture.fusions, module, &Fusion::module);
  if (fusion != architecture.fusions.end() && (kind == ".weight" || kind == ".bias")) {
    std::vector<std::string> names;
    for (const Role role : fusion->roles)
      names.push_back(layer_tensor_name(place->first, std::string(part_of(role).module) + kind));
    return names;
  }
  const auto renamed = std::ranges::find(architecture.names, module, &Renaming::theirs);
  if (renamed == architecture.names.end()) return {stored};
  return {layer_tensor_name(place->first, std::string(renamed->ours) + kind)};
}

}  // namespace dynslice
