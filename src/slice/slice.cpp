#include "dynslice/slice/slice.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "dynslice/model/head.h"
#include "dynslice/support/error.h"
#include "model/kernels.h"
#include "slice/second_moment.h"

namespace dynslice {
namespace {

// Rows of embedding and head that are rotated at once.
constexpr int64_t kRowBlock = 8192;

// The matrix [D, d] of the linear map x → x basis; basis [d, D] fp64.
at::Tensor projection(const at::Tensor& basis) { return basis.t().to(at::kFloat).contiguous(); }

// fp32 weight [out, d] → weight basis [out, D]: the linear then reads the sliced stream.
void rotate_input(Linear& linear, const at::Tensor& basis) {
  linear.weight = at::matmul(linear.weight, basis.to(at::kFloat));
}

// fp32 weight [d, in] → basisᵀ weight [D, in], and the bias with it: the linear then writes the sliced stream.
void rotate_output(Linear& linear, const at::Tensor& basis) {
  const at::Tensor basis32 = basis.to(at::kFloat).t();
  linear.weight = at::matmul(basis32, linear.weight);
  if (linear.bias.defined()) linear.bias = at::matmul(basis32, linear.bias);
}

// Which half of which layer a stream is at, for messages.
std::string place(const char* half, int64_t layer) { return std::string(half) + " layer " + std::to_string(layer); }

void emit_linear(const TensorSink& sink, int64_t layer, const std::string& module, const Linear& linear) {
  sink.write(layer_tensor_name(layer, module + ".weight"), linear.weight);
  if (linear.bias.defined()) sink.write(layer_tensor_name(layer, module + ".bias"), linear.bias);
}

// Rows [first, first + count) of a packed linear.
Linear part(const Linear& packed, int64_t first, int64_t count) {
  return {packed.weight.narrow(0, first, count),
          packed.bias.defined() ? packed.bias.narrow(0, first, count) : at::Tensor()};
}

void emit_layer(const TensorSink& sink, int64_t index, const DecoderLayer& layer, int64_t head_dim) {
  const int64_t q = layer.shape.num_attention_heads * head_dim, kv = layer.shape.num_key_value_heads * head_dim;
  emit_linear(sink, index, "self_attn.q_proj", part(layer.qkv, 0, q));
  emit_linear(sink, index, "self_attn.k_proj", part(layer.qkv, q, kv));
  emit_linear(sink, index, "self_attn.v_proj", part(layer.qkv, q + kv, kv));
  emit_linear(sink, index, "self_attn.o_proj", layer.o_proj);
  const int64_t inner = layer.shape.intermediate_size;
  emit_linear(sink, index, "mlp.gate_proj", part(layer.gate_up, 0, inner));
  emit_linear(sink, index, "mlp.up_proj", part(layer.gate_up, inner, inner));
  emit_linear(sink, index, "mlp.down_proj", layer.down_proj);
  sink.write(layer_tensor_name(index, "attn_shortcut.weight"), layer.attn_shortcut);
  sink.write(layer_tensor_name(index, "mlp_shortcut.weight"), layer.mlp_shortcut);
}

// Carries the calibration stream (and the held-out one) through the model and slices layer after layer.
class Slicer {
 public:
  Slicer(const LayerWalk& walk, const SlicePlan& plan, const TensorSink& sink)
      : walk_(walk), plan_(plan), sink_(sink) {}

  SliceResult run(const TokenWindows& calibration, const TokenWindows* held_out) {
    calibration_ = walk_.embed(calibration);
    if (held_out != nullptr) held_out_ = walk_.embed(*held_out);
    SecondMoment entering = moment();
    for (const at::Tensor& chunk : calibration_.chunks) entering.add(chunk);
    basis_ = entering.principal_directions(plan_.dims.front(), place("entering", 0));
    if (sink_.write) emit_rows("model.embed_tokens.weight", "model.embed_tokens.weight", basis_, {});

    walk_.run(
        "Slicing", calibration_.tokens() + held_out_.tokens(), [&](LayerStep& step) { slice_layer(step); }, at::kFloat);
    if (sink_.write) emit_head();
    return {held_out != nullptr ? std::optional(held_out_loss(*held_out)) : std::nullopt};
  }

 private:
  SecondMoment moment() const { return {walk_.config().hidden_size, walk_.options().device}; }
  bool is_last(const LayerStep& step) const { return step.index() + 1 == walk_.config().num_layers(); }
  bool keeps_head() const { return plan_.head_width == walk_.config().hidden_size; }

  // basis_ is Q_i on entry and Q_{i+1} on return; the streams stay in the original basis. A linear that reads
  // sliced coordinates and writes original ones is the step between: its shortcut is the basis itself.
  void slice_layer(LayerStep& step) {
    const int64_t width = plan_.dims[static_cast<size_t>(step.index())];
    const int64_t next = is_last(step) ? plan_.head_width : plan_.dims[static_cast<size_t>(step.index() + 1)];
    DecoderLayer& layer = step.layer;
    fold_norms(layer);

    rotate_input(layer.qkv, basis_);
    layer.attn_shortcut = basis_.to(at::kFloat);
    const at::Tensor middle = walk_half(step, forward_attention, width, true, place("inside", step.index()));
    rotate_output(layer.o_proj, middle);
    layer.attn_shortcut = at::matmul(middle.t(), basis_).to(at::kFloat);

    rotate_input(layer.gate_up, middle);
    layer.mlp_shortcut = middle.to(at::kFloat);
    basis_ = middle;
    const bool whole_head = is_last(step) && keeps_head();
    basis_ = walk_half(step, forward_mlp, next, !whole_head, place("leaving", step.index()));
    rotate_output(layer.down_proj, basis_);
    layer.mlp_shortcut = at::matmul(basis_.t(), middle).to(at::kFloat);

    if (sink_.write) emit_layer(sink_, step.index(), layer, walk_.config().head_dim);
  }

  using HalfLayer = at::Tensor (*)(const DecoderLayer&, const LayerContext&, const at::Tensor&);

  // Runs half a layer on both streams and returns the basis of the stream that leaves it: `keep` principal
  // directions, or the identity when nothing after this needs the calibration stream (`measure` false).
  at::Tensor walk_half(const LayerStep& step, HalfLayer half, int64_t keep, bool measure, const std::string& where) {
    const at::Tensor to_sliced = projection(basis_);
    const DecoderLayer layer = with_dtype(step.layer, walk_.options().dtype);
    const auto forward = [&](const at::Tensor& x) {
      return half(layer, step.context, kernels::linear(x, to_sliced, {}));
    };
    step.transform(held_out_, forward, 2);
    if (!measure) {
      step.advance(calibration_.tokens() / 2);
      return at::eye(keep, basis_.options());
    }
    SecondMoment leaving = moment();
    step.transform(
        calibration_,
        [&](const at::Tensor& x) {
          at::Tensor y = forward(x);
          leaving.add(y);
          return y;
        },
        2);
    return leaving.principal_directions(keep, where);
  }

  // Writes `source` [vocab, d] with `column_scale` on its columns, times `basis`, in blocks of rows.
  void emit_rows(const std::string& name, const std::string& source, const at::Tensor& basis,
                 const at::Tensor& column_scale) {
    const int64_t vocab = walk_.config().vocab_size, width = walk_.config().hidden_size;
    const at::Tensor basis32 = basis.to(at::kFloat);
    ProgressTask progress(walk_.progress(), "Rotating " + name, vocab, "rows");
    at::Tensor rotated;
    for (int64_t begin = 0; begin < vocab; begin += kRowBlock) {
      const int64_t end = std::min(vocab, begin + kRowBlock);
      at::Tensor rows = walk_.checkpoint().load_rows(source, {vocab, width}, begin, end, at::kFloat).to(basis.device());
      if (column_scale.defined()) rows = rows * column_scale;
      const at::Tensor block = at::matmul(rows, basis32).cpu();
      if (!rotated.defined()) rotated = at::empty({vocab, basis.size(1)}, sink_.dtype);
      rotated.narrow(0, begin, end - begin).copy_(block);
      progress.advance(end - begin);
    }
    sink_.write(name, rotated);
  }

  void emit_head() {
    const ModelConfig& config = walk_.config();
    const Head head = load_head(walk_);
    emit_rows("lm_head.weight", config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight", basis_,
              head.norm);
  }

  // The held-out stream is in the original basis, so the dense model's head serves; a sliced head sees the
  // projection on the directions it keeps.
  double held_out_loss(const TokenWindows& windows) {
    if (!keeps_head()) {
      const at::Tensor to_sliced = projection(basis_), back = basis_.to(at::kFloat);
      for (at::Tensor& chunk : held_out_.chunks)
        chunk = kernels::linear(kernels::linear(chunk, to_sliced, {}), back, {});
    }
    return next_token_losses(walk_, load_head(walk_), std::move(held_out_), windows, "Held-out loss")
        .mean()
        .item<double>();
  }

  const LayerWalk& walk_;
  const SlicePlan& plan_;
  const TensorSink& sink_;
  ResidualStream calibration_;
  ResidualStream held_out_;
  at::Tensor basis_;  // [d, D] fp64: of the streams as they stand
};

}  // namespace

void check_sliceable(const Checkpoint& checkpoint) {
  if (checkpoint.config().is_sliced()) {
    throw_error(ErrorKind::kUsage, checkpoint.path().string(),
                ": is sliced already; slice the dense model it was made from, by a larger ratio");
  }
}

SliceResult slice_model(const LayerWalk& walk, const SlicePlan& plan, const TokenWindows& calibration,
                        const TensorSink& sink, const TokenWindows* held_out) {
  const ModelConfig& config = walk.config();
  check_sliceable(walk.checkpoint());
  check_plan(plan, config, "the plan");
  return Slicer(walk, plan, sink).run(calibration, held_out);
}

}  // namespace dynslice
