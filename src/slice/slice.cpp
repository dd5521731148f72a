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
at::Tensor projection(const at::Tensor& basis, at::ScalarType dtype = at::kFloat) {
  return basis.t().to(dtype).contiguous();
}

// The residual path of a stream in original coordinates: x → x kept keptᵀ = x - x dropped droppedᵀ.
Shortcut subspace_projection(const Basis& basis) {
  Shortcut shortcut{ShortcutKind::kLowRank, {}, {}, {}};
  if (basis.dropped.size(1) == 0) return shortcut;
  shortcut.down = projection(basis.dropped);
  shortcut.up = basis.dropped.neg().to(at::kFloat).contiguous();
  return shortcut;
}

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

void emit_shortcut(const TensorSink& sink, int64_t layer, const std::string& module, const Turn& turn) {
  const auto emit = [&](const char* suffix, const at::Tensor& values) {
    if (values.defined()) sink.write(layer_tensor_name(layer, module + suffix), values);
  };
  emit(".weight", turn.weight);
  emit(".down.weight", turn.down);
  emit(".up.weight", turn.up);
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
}

// Carries the calibration stream (and the held-out one) through the model and slices layer after layer.
class Slicer {
 public:
  Slicer(const LayerWalk& walk, const SlicePlan& plan, const TensorSink& sink, const JournalPhase& journal)
      : walk_(walk), plan_(plan), config_(sliced_config(walk.config(), plan)), sink_(sink), journal_(journal) {}

  SliceResult run(const TokenWindows& calibration, const TokenWindows* held_out) {
    const auto kept = journal_.restore(state(), walk_.options().device);
    if (!kept) begin(calibration, held_out);

    const WalkSpan span{kept ? kept->next_layer : 0,
                        [&](int64_t next) { journal_.save(next, walk_.config().num_layers(), state()); }};
    walk_.run(
        "Slicing", calibration_.tokens() + held_out_.tokens(), [&](LayerStep& step) { slice_layer(step); }, at::kFloat,
        span);
    if (sink_.write) emit_head();
    return {held_out != nullptr ? std::optional(held_out_loss(*held_out)) : std::nullopt};
  }

 private:
  void begin(const TokenWindows& calibration, const TokenWindows* held_out) {
    calibration_ = walk_.embed(calibration);
    if (held_out != nullptr) held_out_ = walk_.embed(*held_out);
    basis_ = entering_basis();
    if (sink_.write) emit_embedding();
  }

  // All that the walk remembers between two layers.
  WalkState state() {
    WalkState state;
    state.tensors = {{"kept", &basis_.kept}, {"dropped", &basis_.dropped}};
    state.streams = {{"calibration", &calibration_}, {"held_out", &held_out_}};
    return state;
  }

  SecondMoment moment() const { return {walk_.config().hidden_size, walk_.options().device}; }
  bool is_whole(int64_t width) const { return width == walk_.config().hidden_size; }
  Basis original() const { return original_basis(walk_.config().hidden_size, walk_.options().device); }

  Basis entering_basis() const {
    if (is_whole(config_.embedding_width)) return original();
    SecondMoment entering = moment();
    for (const at::Tensor& chunk : calibration_.chunks) entering.add(chunk);
    return entering.principal_directions(config_.embedding_width, place("entering", 0));
  }

  // basis_ is that of the stream that enters on entry, and of the one that leaves on return; the streams themselves
  // stay in original coordinates, which is where the second moments are taken.
  void slice_layer(LayerStep& step) {
    const LayerShape& shape = config_.layers[static_cast<size_t>(step.index())];
    DecoderLayer& layer = step.layer;
    fold_norms(layer);

    rotate_input(layer.qkv, basis_.kept);
    const Turn middle = walk_half(step, attention_branch, shape.middle_width, shape.attn_shortcut.kind, "inside");
    rotate_output(layer.o_proj, middle.basis.kept);
    if (sink_.write) emit_shortcut(sink_, step.index(), "attn_shortcut", middle);

    basis_ = middle.basis;
    rotate_input(layer.gate_up, basis_.kept);
    const Turn leaving = walk_half(step, mlp_branch, shape.output_width, shape.mlp_shortcut.kind, "leaving");
    rotate_output(layer.down_proj, leaving.basis.kept);
    if (sink_.write) emit_shortcut(sink_, step.index(), "mlp_shortcut", leaving);

    // In one piece, as it would come from the journal: products of views round differently.
    basis_ = {leaving.basis.kept.contiguous(), leaving.basis.dropped.contiguous()};
    if (sink_.write) emit_layer(sink_, step.index(), layer, walk_.config().head_dim);
  }

  using Branch = at::Tensor (*)(const DecoderLayer&, const LayerContext&, const at::Tensor&);

  // Runs half a layer on both streams and returns the basis of the stream that leaves it, and the way there.
  Turn walk_half(const LayerStep& step, Branch branch, int64_t width, ShortcutKind kind, const char* half) {
    const at::ScalarType dtype = walk_.options().dtype;
    const at::Tensor to_sliced = projection(basis_.kept, dtype);
    const Shortcut residual = subspace_projection(basis_);
    const DecoderLayer layer = with_dtype(step.layer, dtype);
    const auto forward = [&](const at::Tensor& x) {
      return add_residual(branch(layer, step.context, kernels::linear(x, to_sliced, {})), x, residual);
    };
    step.transform(held_out_, forward, 2);
    const bool is_last_half = branch == mlp_branch && step.index() + 1 == walk_.config().num_layers();
    if (is_last_half && is_whole(width)) {  // nothing after this needs the calibration stream
      step.advance(calibration_.tokens() / 2);
      return turn_to(basis_, original(), kind);
    }
    if (is_whole(width)) {
      step.transform(calibration_, forward, 2);
      return turn_to(basis_, original(), kind);
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
    return turn_to(basis_, leaving.principal_directions(width, place(half, step.index())), kind);
  }

  // Writes `source` [vocab, d] with `column_scale` on its columns, times `basis` (itself when there is none), in
  // blocks of rows.
  void emit_rows(const std::string& name, const std::string& source, const at::Tensor& basis,
                 const at::Tensor& column_scale) {
    const int64_t vocab = walk_.config().vocab_size, width = walk_.config().hidden_size;
    const at::Device device = walk_.options().device;
    const at::Tensor basis32 = basis.defined() ? basis.to(at::kFloat) : basis;
    ProgressTask progress(walk_.progress(), (basis.defined() ? "Rotating " : "Copying ") + name, vocab, "rows");
    at::Tensor rotated;
    for (int64_t begin = 0; begin < vocab; begin += kRowBlock) {
      const int64_t end = std::min(vocab, begin + kRowBlock);
      at::Tensor rows = walk_.checkpoint().load_rows(source, {vocab, width}, begin, end, at::kFloat).to(device);
      if (column_scale.defined()) rows = rows * column_scale;
      if (basis.defined()) rows = at::matmul(rows, basis32);
      if (!rotated.defined()) rotated = at::empty({vocab, rows.size(1)}, sink_.dtype);
      rotated.narrow(0, begin, end - begin).copy_(rows);
      progress.advance(end - begin);
    }
    sink_.write(name, rotated);
  }

  void emit_embedding() {
    const std::string name = "model.embed_tokens.weight";
    emit_rows(name, name, config_.has_embedding_rotation ? at::Tensor() : basis_.kept, {});
    if (config_.has_embedding_rotation) sink_.write("model.embed_rotation.weight", projection(basis_.kept));
  }

  void emit_head() {
    const Head head = load_head(walk_);
    if (config_.has_final_norm_weight) sink_.write("model.norm.weight", head.norm);
    if (config_.has_head_rotation) {
      const at::Tensor rotation = basis_.kept.to(at::kFloat);
      sink_.write("model.head_rotation.weight", head.norm.defined() ? rotation * head.norm.view({-1, 1}) : rotation);
    }
    if (config_.tie_word_embeddings) return;
    const bool tied = walk_.config().tie_word_embeddings;
    emit_rows("lm_head.weight", tied ? "model.embed_tokens.weight" : "lm_head.weight", basis_.kept, head.norm);
  }

  // The held-out stream is in the original basis, so the dense model's head serves; a sliced head sees the
  // projection on the directions it keeps.
  double held_out_loss(const TokenWindows& windows) {
    if (!is_whole(config_.head_width)) {
      const Shortcut projection = subspace_projection(basis_);
      for (at::Tensor& chunk : held_out_.chunks) chunk = add_residual(at::zeros_like(chunk), chunk, projection);
    }
    return next_token_losses(walk_, load_head(walk_), std::move(held_out_), windows, "Held-out loss")
        .mean()
        .item<double>();
  }

  const LayerWalk& walk_;
  const SlicePlan& plan_;
  const ModelConfig config_;  // of the sliced model
  const TensorSink& sink_;
  const JournalPhase& journal_;
  ResidualStream calibration_;
  ResidualStream held_out_;
  Basis basis_;  // of the streams as they stand
};

}  // namespace

void check_sliceable(const Checkpoint& checkpoint) {
  if (checkpoint.config().is_sliced()) {
    throw_error(ErrorKind::kUsage, checkpoint.path().string(),
                ": is sliced already; slice the dense model it was made from, by a larger ratio");
  }
}

SliceResult slice_model(const LayerWalk& walk, const SlicePlan& plan, const TokenWindows& calibration,
                        const TensorSink& sink, const TokenWindows* held_out, const JournalPhase& journal) {
  const ModelConfig& config = walk.config();
  check_sliceable(walk.checkpoint());
  check_plan(plan, config, "the plan");
  return Slicer(walk, plan, sink, journal).run(calibration, held_out);
}

}  // namespace dynslice
