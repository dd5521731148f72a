#include "dynslice/model/decoder_layer.h"

#include <algorithm>
#include <iterator>

#include "aten.h"

namespace dynslice {
namespace {

// Values of a packed matrix that are loaded at once.
constexpr int64_t kLoadBlockValues = int64_t{1} << 22;

// Loads one layer's tensors by their names.
class LayerLoader {
 public:
  LayerLoader(const Checkpoint& checkpoint, int64_t index, at::ScalarType dtype, at::Device device)
      : checkpoint_(checkpoint), index_(index), dtype_(dtype), device_(device) {}

  at::Tensor tensor(const std::string& suffix, const std::vector<int64_t>& shape, at::ScalarType dtype) const {
    return checkpoint_.load(layer_tensor_name(index_, suffix), shape, dtype).to(device_);
  }

  Shortcut shortcut(const std::string& module, const ShortcutShape& shape, int64_t in, int64_t out) const {
    Shortcut result;
    result.kind = shape.kind;
    if (shape.kind == ShortcutKind::kMatrix) result.weight = tensor(module + ".weight", {out, in}, at::kFloat);
    if (shape.rank == 0) return result;
    result.down = tensor(module + ".down.weight", {shape.rank, in}, dtype_);
    result.up = shape.kind == ShortcutKind::kSymmetric ? result.down.t().neg().contiguous()
                                                       : tensor(module + ".up.weight", {out, shape.rank}, dtype_);
    return result;
  }

  // Several linears of the same input as one, rows one after the other. They are read in blocks into their places, so
  // that no second copy of them is ever in memory.
  Linear packed(const std::vector<MatrixPart>& linears, bool bias) const {
    const int64_t in = linears.front().columns;
    int64_t rows = 0;
    for (const MatrixPart& one : linears) rows += one.rows;
    const auto options = at::TensorOptions().dtype(dtype_).device(device_);
    const at::Tensor weight = at::empty({rows, in}, options);
    std::vector<at::Tensor> biases;
    for (const MatrixPart& one : linears) {
      const int64_t out = one.rows;
      const std::string module(one.part->module), name = layer_tensor_name(index_, module + ".weight");
      const int64_t step = std::max<int64_t>(1, kLoadBlockValues / in);
      for (int64_t row = 0; row < out; row += step) {
        const int64_t count = std::min(step, out - row);
        weight.narrow(0, one.first_row + row, count)
            .copy_(checkpoint_.load_rows(name, {out, in}, row, row + count, dtype_));
      }
      if (bias) biases.push_back(tensor(module + ".bias", {out}, dtype_));
    }
    return {weight, bias ? at::cat(biases) : at::Tensor()};
  }

 private:
  const Checkpoint& checkpoint_;
  int64_t index_;
  at::ScalarType dtype_;
  at::Device device_;
};

// In place: a loaded layer is its weights' only owner, and another fp32 copy would be the largest thing in memory.
void scale_columns(at::Tensor& weight, const at::Tensor& scale) {
  if (weight.scalar_type() == at::kFloat) {
    weight.mul_(scale.view({1, -1}));
  } else {
    weight = (weight.to(at::kFloat) * scale.view({1, -1})).to(weight.scalar_type());
  }
}

// The bias of what a matrix reads, as a bias of what it gives.
void add_to_bias(Linear& linear, const at::Tensor& of_input) {
  const at::Tensor sum = at::mv(linear.weight.to(at::kFloat), of_input).add_(linear.bias.to(at::kFloat));
  linear.bias = sum.to(linear.bias.scalar_type());
}

// Takes the mean of its entries from what a matrix gives.
void centre_output(Linear& linear) {
  const auto centred = [](const at::Tensor& values) {
    const at::Tensor wide = values.to(at::kFloat);
    return (wide - wide.mean(0, /*keepdim=*/true)).to(values.scalar_type());
  };
  linear.weight = centred(linear.weight);
  if (linear.bias.defined()) linear.bias = centred(linear.bias);
}

}  // namespace

std::string name_of(const HalfLayer& half, int64_t layer) {
  return std::string("the ") + half.name + " of layer " + std::to_string(layer);
}

at::Tensor DecoderLayer::* own_member(Role role) {
  switch (role) {
    case Role::kAttentionNorm:
      return &DecoderLayer::input_norm;
    case Role::kQueryNorm:
      return &DecoderLayer::query_norm;
    case Role::kKeyNorm:
      return &DecoderLayer::key_norm;
    case Role::kDeltaConvolution:
      return &DecoderLayer::delta_convolution;
    case Role::kDeltaStep:
      return &DecoderLayer::delta_step;
    case Role::kDeltaRate:
      return &DecoderLayer::delta_rate;
    case Role::kDeltaNorm:
      return &DecoderLayer::delta_norm;
    case Role::kAttentionBranchNorm:
      return &DecoderLayer::attention_branch_norm;
    case Role::kMlpNorm:
      return &DecoderLayer::post_attention_norm;
    case Role::kMlpBranchNorm:
      return &DecoderLayer::mlp_branch_norm;
    case Role::kLayerScale:
      return &DecoderLayer::scale;
    default:
      return nullptr;
  }
}

at::Tensor DecoderLayer::* norm_bias_member(Role role) {
  switch (role) {
    case Role::kAttentionNorm:
      return &DecoderLayer::input_norm_bias;
    case Role::kMlpNorm:
      return &DecoderLayer::post_attention_norm_bias;
    default:
      return nullptr;
  }
}

Linear DecoderLayer::* matrix_member(Role role) {
  switch (role) {
    case Role::kQuery:
    case Role::kKey:
    case Role::kValue:
    case Role::kDeltaInput:
    case Role::kDeltaGate:
    case Role::kDeltaBeta:
    case Role::kDeltaDecay:
      return &DecoderLayer::qkv;
    case Role::kOutput:
    case Role::kDeltaOutput:
      return &DecoderLayer::o_proj;
    case Role::kGate:
    case Role::kUp:
      return &DecoderLayer::gate_up;
    case Role::kDown:
      return &DecoderLayer::down_proj;
    default:
      return nullptr;
  }
}

std::vector<MatrixPart> matrix_parts(const LayerShape& shape) {
  std::vector<MatrixPart> parts;
  for (const LayerPart& part : layer_parts()) {
    if (!part.is_linear() || !part.is_in(shape)) continue;
    MatrixPart one{&part, matrix_member(part.role), 0, part.rows(shape), part.columns(shape)};
    if (!parts.empty() && parts.back().matrix == one.matrix) one.first_row = parts.back().first_row + parts.back().rows;
    parts.push_back(one);
  }
  return parts;
}

std::vector<Linear DecoderLayer::*> matrices_of(const LayerShape& shape) {
  std::vector<Linear DecoderLayer::*> matrices;
  for (const LayerPart& part : layer_parts()) {
    Linear DecoderLayer::* const matrix = matrix_member(part.role);
    if (matrix == nullptr || !part.is_in(shape)) continue;
    if (matrices.empty() || matrices.back() != matrix) matrices.push_back(matrix);
  }
  return matrices;
}

void remove_attention(DecoderLayer& layer) {
  for (const LayerPart& part : layer_parts()) {
    if (part.half != Half::kAttention) continue;
    if (part.is_linear()) {
      layer.*matrix_member(part.role) = {};
    } else {
      (layer.*own_member(part.role)).reset();
      if (const auto bias = norm_bias_member(part.role)) (layer.*bias).reset();
    }
  }
}

std::vector<at::Tensor*> tensors_of(DecoderLayer& layer) {
  std::vector<at::Tensor*> tensors;
  for (const LayerPart& part : layer_parts()) {
    if (!part.is_linear()) {
      tensors.push_back(&(layer.*own_member(part.role)));
      if (const auto bias = norm_bias_member(part.role)) tensors.push_back(&(layer.*bias));
      continue;
    }
    Linear& linear = layer.*matrix_member(part.role);
    if (std::ranges::find(tensors, &linear.weight) == tensors.end())
      tensors.insert(tensors.end(), {&linear.weight, &linear.bias});
  }
  return tensors;
}

std::string layer_tensor_name(int64_t index, const std::string& suffix) {
  return "model.layers." + std::to_string(index) + "." + suffix;
}

DecoderLayer load_decoder_layer(const Checkpoint& checkpoint, int64_t index, at::ScalarType dtype, at::Device device) {
  const ModelConfig& config = checkpoint.config();
  const LayerShape& shape = config.layers.at(static_cast<size_t>(index));
  const LayerLoader loader(checkpoint, index, dtype, device);
  DecoderLayer layer;
  layer.shape = shape;
  layer.branch_scale = config.branch_scale;
  layer.is_sliding = config.slides(static_cast<size_t>(index));
  layer.is_rotated = config.layer_is_unrotated.empty() || !config.layer_is_unrotated.at(static_cast<size_t>(index));
  for (const LayerPart& part : layer_parts()) {
    if (part.is_linear() || !part.is_in(shape)) continue;
    const auto load = [&](const char* kind) {
      return loader.tensor(std::string(part.module) + kind, part.sizes(shape), at::kFloat);
    };
    layer.*own_member(part.role) = load(".weight");
    if (part.has_bias(config)) layer.*norm_bias_member(part.role) = load(".bias");
  }
  const std::vector<MatrixPart> linears = matrix_parts(shape);
  for (Linear DecoderLayer::* matrix : matrices_of(shape)) {
    std::vector<MatrixPart> rows;
    std::ranges::copy_if(linears, std::back_inserter(rows),
                         [&](const MatrixPart& one) { return one.matrix == matrix; });
    layer.*matrix = loader.packed(rows, rows.front().part->has_bias(config));
  }
  layer.attn_shortcut = loader.shortcut("attn_shortcut", shape.attn_shortcut, shape.input_width, shape.middle_width);
  layer.mlp_shortcut = loader.shortcut("mlp_shortcut", shape.mlp_shortcut, shape.middle_width, shape.output_width);
  return layer;
}

at::Tensor scaled(const HalfLayer& half, const DecoderLayer& layer, const at::Tensor& x) {
  const at::Tensor scale = half.scale != nullptr ? layer.*half.scale : at::Tensor();
  return scale.defined() ? x * scale : x;
}

DecoderLayer with_dtype(DecoderLayer layer, at::ScalarType dtype) {
  for (Linear DecoderLayer::* matrix : matrices_of(layer.shape)) {
    Linear& linear = layer.*matrix;
    if (!linear.weight.defined()) continue;
    linear.weight = linear.weight.to(dtype);
    if (linear.bias.defined()) linear.bias = linear.bias.to(dtype);
  }
  return layer;
}

void fold_norms(DecoderLayer& layer) {
  for (const HalfLayer& half : kHalfLayers) {
    at::Tensor &norm = layer.*half.norm, &norm_bias = layer.*half.norm_bias;
    if (!half.is_in(layer.shape)) continue;
    if (norm_bias.defined()) {
      add_to_bias(layer.*half.reads, norm_bias);
      centre_output(layer.*half.writes);
    }
    if (norm.defined()) scale_columns((layer.*half.reads).weight, norm);
    norm.reset();
    norm_bias.reset();
  }
  layer.shape.has_norm_weights = false;
}

std::vector<std::pair<std::string, at::Tensor>> layer_tensors(const DecoderLayer& layer) {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  const auto tensor = [&](const std::string& suffix, const at::Tensor& values) {
    if (values.defined()) tensors.emplace_back(suffix, values);
  };
  const auto shortcut = [&](const Shortcut& residual, const std::string& module) {
    tensor(module + ".weight", residual.weight);
    tensor(module + ".down.weight", residual.down);
    if (residual.kind == ShortcutKind::kLowRank) tensor(module + ".up.weight", residual.up);
  };
  const std::vector<MatrixPart> linears = matrix_parts(layer.shape);
  for (const LayerPart& part : layer_parts()) {
    const std::string module(part.module);
    if (!part.is_linear()) {
      tensor(module + ".weight", layer.*own_member(part.role));
      if (const auto bias = norm_bias_member(part.role)) tensor(module + ".bias", layer.*bias);
    }
    const auto one = std::ranges::find(linears, &part, &MatrixPart::part);
    if (one == linears.end()) continue;
    const Linear& linear = layer.*one->matrix;
    // What writes to the stream is alone in its matrix, whose rows may have been sliced since the shape was read.
    const int64_t rows = part.side == PartSide::kWrites ? linear.weight.size(0) : one->rows;
    tensor(module + ".weight", linear.weight.narrow(0, one->first_row, rows));
    if (linear.bias.defined()) tensor(module + ".bias", linear.bias.narrow(0, one->first_row, rows));
  }
  shortcut(layer.attn_shortcut, "attn_shortcut");
  shortcut(layer.mlp_shortcut, "mlp_shortcut");
  return tensors;
}

}  // namespace dynslice
