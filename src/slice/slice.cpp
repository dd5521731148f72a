#include "dynslice/slice/slice.h"

#include <algorithm>

#include "aten.h"
#include "dynslice/model/architecture.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/kernels.h"
#include "dynslice/walk/head.h"
#include "dynslice/walk/journaled_walk.h"
#include "slice/basis.h"
#include "slice/refit.h"
#include "slice/rotate.h"

namespace dynslice {
namespace {

// The matrix [D, d] of the linear map x → x basis; basis [d, D] fp64.
at::Tensor projection(const at::Tensor& basis, at::ScalarType dtype = at::kFloat) {
  return basis.t().to(dtype).contiguous();
}

// The way of a turn as a half layer computes it: the correction in the dtype of the forward, a whole matrix in fp32.
Shortcut as_shortcut(const Turn& turn, at::ScalarType dtype) {
  Shortcut way;
  if (turn.weight.defined()) {
    way.kind = ShortcutKind::kMatrix;
    way.weight = turn.weight.to(at::kFloat);
  } else if (turn.down.defined()) {
    way.kind = ShortcutKind::kLowRank;
    way.down = turn.down.to(dtype);
    way.up = turn.up.to(dtype);
  }
  return way;
}

// A turn of columns [d, n] in the stream's coordinates → [out, n].
at::Tensor turn_columns(const Turn& turn, int64_t out, const at::Tensor& columns) {
  if (turn.weight.defined()) return kernels::matmul(turn.weight.to(at::kFloat), columns);
  at::Tensor passed = columns.narrow(0, 0, out);
  if (!turn.down.defined()) return passed;
  return kernels::matmul(turn.up.to(at::kFloat), kernels::matmul(turn.down.to(at::kFloat), columns)).add_(passed);
}

void turn_output(Linear& linear, const Turn& turn, int64_t out) {
  linear.weight = turn_columns(turn, out, linear.weight);
  if (linear.bias.defined()) linear.bias = turn_columns(turn, out, linear.bias.unsqueeze(1)).squeeze(1);
}

// Which half of which layer a stream is at, for messages.
std::string place(const char* half, int64_t layer) { return std::string(half) + " layer " + std::to_string(layer); }

void emit_shortcut(const TensorSink& sink, int64_t layer, const std::string& module, const ShortcutTensors& path) {
  const auto emit = [&](const char* suffix, const at::Tensor& values) {
    if (values.defined()) sink.write(layer_tensor_name(layer, module + suffix), values);
  };
  emit(".weight", path.weight);
  emit(".down.weight", path.down);
  emit(".up.weight", path.up);
}

void emit_layer(const TensorSink& sink, int64_t index, const DecoderLayer& layer) {
  for (const auto& [suffix, values] : layer_tensors(layer)) {
    if (find_part(suffix) != nullptr) sink.write(layer_tensor_name(index, suffix), values);
  }
}

// Carries the calibration stream (and the held-out one) through the model and slices layer after layer.
//
// Between half layers the streams are [.., d] wide, in the coordinates of the whole basis (kept and dropped directions)
// of the half layer that they come from: its output matrix is rotated by that, so that what it adds needs no rotation
// token by token, and what is passed beside it are the first coordinates. `way_` leads from there to the sliced stream
// that enters the next half layer. Where something is refitted, the dense model's stream goes beside them.
class Slicer {
 public:
  Slicer(const LayerWalk& walk, const SlicePlan& plan, const TensorSink& sink, const JournalPhase& journal,
         const RotationRefitOptions& refit)
      : walk_(walk),
        config_(sliced_config(walk.config(), plan)),
        shares_basis_(plan.basis == BasisScope::kLayer),
        sink_(sink),
        journal_(journal),
        refit_(refit) {}

  SliceResult run(const TokenWindows& calibration, const TokenWindows* held_out) {
    calibration_ = held_out_ = dense_ = walk_.empty_stream();
    const auto begin = [&] {
      calibration_ = entering(calibration);
      if (refit_.is_any()) dense_ = calibration_.snapshot();
      if (held_out != nullptr) held_out_ = entering(*held_out);
      enter();
      if (sink_.write) emit_embedding();
    };
    run_journaled(
        walk_, journal_,
        {.task = "Slicing",
         .tokens = (refit_.is_any() ? 2 : 1) * calibration.tokens() + (held_out != nullptr ? held_out->tokens() : 0),
         .state = [&] { return state(); },
         .begin = begin,
         .visit = [&](LayerStep& step) { slice_layer(step); },
         .weights = at::kFloat});
    if (sink_.write) emit_head();
    return {held_out != nullptr ? std::optional(held_out_loss(*held_out)) : std::nullopt};
  }

 private:
  // What enters layer 0, centred where layer norms would do that, as these are folded away.
  ResidualStream entering(const TokenWindows& windows) const {
    ResidualStream stream = walk_.embed(windows);
    if (walk_.config().has_centred_norms)
      stream.transform([](const at::Tensor& x) { return x - x.mean(-1, /*keepdim=*/true); });
    return stream;
  }

  // All that the walk remembers between two layers.
  WalkState state() {
    WalkState state;
    state.keep("kept", basis_.kept);
    state.keep("dropped", basis_.dropped);
    state.keep("way_kind", way_.kind);
    state.keep("way", way_.weight);
    state.keep("way_down", way_.down);
    state.keep("way_up", way_.up);
    state.keep("calibration", calibration_);
    state.keep("held_out", held_out_);
    state.keep("dense", dense_);
    return state;
  }

  SecondMoment moment() const { return {walk_.config().hidden_size, walk_.options().device}; }
  bool is_whole(int64_t width) const { return width == walk_.config().hidden_size; }
  Basis original() const { return original_basis(walk_.config().hidden_size, walk_.options().device); }

  // The basis of the stream that enters layer 0; the streams are in original coordinates.
  void enter() {
    basis_ = original();
    way_ = {};
    if (is_whole(config_.embedding_width)) return;
    SecondMoment entering = moment();
    const auto next = shares_basis_ ? std::optional(attention_of(0, basis_.kept)) : std::nullopt;
    calibration_.visit([&](const at::Tensor& x) { add_places(entering, x, next); });
    basis_ = principal_directions(entering, config_.embedding_width, place("entering", 0));
    way_ = as_shortcut({basis_, basis_.kept.t(), {}, {}}, walk_.options().dtype);
  }

  void slice_layer(LayerStep& step) {
    const LayerShape& shape = config_.layers[static_cast<size_t>(step.index())];
    fold_norms(step.layer);
    slice_half(step, {kAttentionHalf, shape.input_width, shape.middle_width, shape.attn_shortcut.kind, "attn_shortcut",
                      "inside"});
    slice_half(step,
               {kMlpHalf, shape.middle_width, shape.output_width, shape.mlp_shortcut.kind, "mlp_shortcut", "leaving"});
    if (sink_.write) emit_layer(sink_, step.index(), step.layer);
  }

  struct SlicedHalf : HalfLayer {
    int64_t in, out;
    ShortcutKind kind;
    const char* module;  // of its shortcut
    const char* where;   // its stream is, for messages
  };

  StreamPair streams(const SlicedHalf& half) const { return {calibration_, dense_, way_, half.in}; }

  void slice_half(LayerStep& step, const SlicedHalf& half) {
    const at::Tensor reading =
        reading_basis(walk_, refit_, basis_.kept, streams(half), "what is read by " + name_of(half, step.index()));
    if (refit_.is_any()) advance(step, half, with_dtype(step.layer, walk_.options().dtype), dense_);
    rotate_input(step.layer.*half.reads, reading);
    if (shares_basis_ && half.which == Half::kAttention && !is_whole(half.out)) {
      stay_in_basis(step, half);
      return;
    }
    if (half.kind == ShortcutKind::kMatrix && is_whole(half.out)) {
      return_to_original(step, half);
      return;
    }
    const at::Tensor coordinates = basis_.whole();
    rotate_output(step.layer.*half.writes, coordinates);
    const auto principal = walk_half(step, half, {}, coordinates);
    const Turn turn = turn_to(half.in, principal.value_or(original()), half.kind);
    if (sink_.write) {
      emit_shortcut(sink_, step.index(), half.module, residual_path(turn, half.in, half.kind));
      turn_output(step.layer.*half.writes, turn, half.out);
    }
    basis_ = {at::matmul(coordinates, turn.basis.kept), at::matmul(coordinates, turn.basis.dropped)};
    way_ = as_shortcut(turn, walk_.options().dtype);
  }

  // The stream behind attention is in the basis of the one in front.
  void stay_in_basis(LayerStep& step, const SlicedHalf& half) {
    rotate_output(step.layer.*half.writes, basis_.kept);
    refit(step, half, {}, basis_.kept);
    const DecoderLayer layer = with_dtype(step.layer, walk_.options().dtype);
    const auto forward = [&](const at::Tensor& y) {
      const at::Tensor x = pass(way_, y, half.in);
      return add_residual(half_branch(half, layer, step.context, x), x, {});
    };
    step.transform(held_out_, forward, 2);
    step.transform(calibration_, forward, 2);
    way_ = {};
  }

  // Layer `index` as it is in the dense model, in the coordinates of a whole basis: its attention is all that is used.
  DecoderLayer attention_of(int64_t index, const at::Tensor& coordinates) const {
    DecoderLayer layer = load_decoder_layer(walk_.checkpoint(), index, at::kFloat, walk_.options().device);
    fold_norms(layer);
    layer.gate_up = layer.down_proj = {};
    rotate_input(layer.qkv, coordinates);
    rotate_output(layer.o_proj, coordinates);
    return with_dtype(std::move(layer), walk_.options().dtype);
  }

  // Adds a stream and, when it shares its basis with the one behind the next attention, that one too.
  void add_places(SecondMoment& moment, const at::Tensor& x, const std::optional<DecoderLayer>& next) const {
    moment.add(x);
    if (next) moment.add(forward_half(kAttentionHalf, *next, walk_.context(), x));
  }

  // The stream leaves this half layer whole and in original coordinates.
  void return_to_original(LayerStep& step, const SlicedHalf& half) {
    walk_half(step, half, {ShortcutKind::kMatrix, basis_.kept.to(at::kFloat), {}, {}}, original().kept);
    if (sink_.write) emit_shortcut(sink_, step.index(), half.module, {basis_.kept, {}, {}});
    basis_ = original();
    way_ = {};
  }

  // What leaves the half layer in these coordinates [d, out] is fitted to the dense stream, which is ahead.
  void refit(LayerStep& step, const SlicedHalf& half, const Shortcut& residual, const at::Tensor& coordinates) {
    if (!refit_.is_any()) return;
    refit_writer(walk_, refit_, step.context, half, step.layer, streams(half), residual, coordinates,
                 "what is inside " + name_of(half, step.index()));
  }

  // Runs half a layer on both streams, with `residual` beside it; what leaves is in `coordinates` [d, d] until it is
  // turned. Returns the principal directions of the stream that leaves, in its own coordinates, unless it stays whole.
  std::optional<Basis> walk_half(LayerStep& step, const SlicedHalf& half, const Shortcut& residual,
                                 const at::Tensor& coordinates) {
    refit(step, half, residual, coordinates);
    const DecoderLayer layer = with_dtype(step.layer, walk_.options().dtype);
    const auto forward = [&](const at::Tensor& y) {
      const at::Tensor x = pass(way_, y, half.in);
      return add_residual(half_branch(half, layer, step.context, x), x, residual);
    };
    step.transform(held_out_, forward, 2);
    const bool is_last = half.which == Half::kMlp && step.index() + 1 == walk_.config().num_layers();
    if (is_whole(half.out)) {
      if (is_last) {  // nothing after this needs the calibration stream
        step.advance(calibration_.tokens() / 2);
      } else {
        step.transform(calibration_, forward, 2);
      }
      return std::nullopt;
    }
    SecondMoment leaving = moment();
    const auto next =
        shares_basis_ && !is_last ? std::optional(attention_of(step.index() + 1, basis_.whole())) : std::nullopt;
    step.transform(
        calibration_,
        [&](const at::Tensor& y) {
          at::Tensor result = forward(y);
          add_places(leaving, result, next);
          return result;
        },
        2);
    return principal_directions(leaving, half.out, place(half.where, step.index()));
  }

  void emit_embedding() {
    const std::string name = "model.embed_tokens.weight";
    at::Tensor rotation = basis_.kept;
    if (walk_.config().has_centred_norms && !config_.centres_embedding())
      rotation = rotation - rotation.mean(0, /*keepdim=*/true);
    write_rotated_rows(walk_, sink_, name, name, config_.has_embedding_rotation ? at::Tensor() : rotation, {});
    emit_positions(config_.has_embedding_rotation ? at::Tensor() : rotation);
    if (config_.has_embedding_rotation) sink_.write("model.embed_rotation.weight", projection(rotation));
  }

  void emit_positions(const at::Tensor& rotation) {
    const ModelConfig& dense = walk_.config();
    if (dense.position_rows == 0) return;
    const std::string name = "model.embed_positions.weight";
    const at::Tensor rows =
        walk_.checkpoint().load(name, {dense.position_rows, dense.hidden_size}, at::kFloat).to(walk_.options().device);
    sink_.write(name, rotation.defined() ? kernels::matmul(rows, rotation.to(at::kFloat)) : rows);
  }

  void emit_head() {
    const Head head = load_head(walk_);
    if (config_.has_final_norm_weight) sink_.write("model.norm.weight", head.norm);
    if (head.bias.defined())
      sink_.write(config_.has_head_rotation ? "model.head_rotation.bias" : "model.norm.bias", head.bias);
    if (config_.has_head_rotation) {
      const at::Tensor rotation = basis_.kept.to(at::kFloat);
      sink_.write("model.head_rotation.weight", head.norm.defined() ? rotation * head.norm.view({-1, 1}) : rotation);
    }
    if (config_.tie_word_embeddings) return;
    const bool stays = walk_.config().has_centred_norms;
    const bool tied = walk_.config().tie_word_embeddings;
    write_rotated_rows(walk_, sink_, "lm_head.weight", tied ? "model.embed_tokens.weight" : "lm_head.weight",
                       stays ? at::Tensor() : basis_.kept, stays ? at::Tensor() : head.norm);
  }

  // In original coordinates, where the dense model's head reads it, the held-out stream has lost what was cut.
  double held_out_loss(const TokenWindows& windows) {
    const at::Tensor back = basis_.kept.to(at::kFloat);
    held_out_.transform(
        [&](const at::Tensor& x) { return kernels::linear(pass(way_, x, config_.head_width), back, {}); });
    return next_token_losses(walk_, load_head(walk_), std::move(held_out_), windows, "Held-out loss")
        .mean()
        .item<double>();
  }

  const LayerWalk& walk_;
  const ModelConfig config_;  // of the sliced model
  const bool shares_basis_;   // one for the streams in front of a layer's attention and of its MLP
  const TensorSink& sink_;
  const JournalPhase& journal_;
  const RotationRefitOptions& refit_;
  ResidualStream calibration_;
  ResidualStream held_out_;
  ResidualStream dense_;  // of the calibration text, in original coordinates; empty when nothing is refitted
  Basis basis_;           // of the stream that enters the next half layer, in original coordinates
  Shortcut way_;          // to it, from the coordinates that the streams are in
};

}  // namespace

void check_sliceable(const Checkpoint& checkpoint) {
  if (checkpoint.config().is_sliced()) {
    throw_error(ErrorKind::kUsage, checkpoint.path().string(),
                ": is sliced already; slice the dense model it was made from, by a larger ratio");
  }
  if (!architecture_of(checkpoint.config()).can_cut_stream()) {
    throw_error(
        ErrorKind::kUsage, checkpoint.path().string(), ": ", checkpoint.config().model_type,
        " norms what attention and MLP write, over the whole width, so that no basis of the stream can be cut; ",
        "use --method modular, which removes neurons and heads, or depth drop");
  }
  if (!checkpoint.config().has_whole_layers()) {
    throw_error(ErrorKind::kUsage, checkpoint.path().string(),
                ": has a layer that is an MLP alone (of depth streamline --replace ffn or swiglu), which cannot be "
                "sliced; streamline with --replace layer or linear instead");
  }
}

SliceResult slice_model(const LayerWalk& walk, const SlicePlan& plan, const TokenWindows& calibration,
                        const TensorSink& sink, const TokenWindows* held_out, const JournalPhase& journal,
                        const RotationRefitOptions& refit) {
  const ModelConfig& config = walk.config();
  check_sliceable(walk.checkpoint());
  check_plan(plan, config, "the plan");
  return Slicer(walk, plan, sink, journal, refit).run(calibration, held_out);
}

}  // namespace dynslice
