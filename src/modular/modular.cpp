#include "dynslice/modular/modular.h"

#include <algorithm>

#include "aten.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/elimination.h"
#include "dynslice/tensor/inner_moment.h"
#include "dynslice/tensor/kernels.h"
#include "dynslice/tensor/leverage.h"
#include "dynslice/walk/head.h"
#include "dynslice/walk/journaled_walk.h"
#include "modular/head_elimination.h"
#include "modular/places.h"
#include "modular/writer.h"

namespace dynslice {
namespace {

Linear rows_of(const Linear& linear, const at::Tensor& rows) {
  return {linear.weight.index_select(0, rows),
          linear.bias.defined() ? linear.bias.index_select(0, rows) : at::Tensor()};
}

// Gives the MLP the refitted rows [k, d] fp64 of the neurons `kept`.
void keep_neurons(DecoderLayer& layer, const at::Tensor& kept, const at::Tensor& rows) {
  const int64_t inner = layer.shape.intermediate_size;
  layer.gate_up = rows_of(layer.gate_up, layer.shape.is_gated ? at::cat({kept, kept + inner}) : kept);
  layer.down_proj.weight = written_by(kMlpHalf, layer, rows);
  layer.shape.intermediate_size = kept.numel();
}

// Gives the attention the refitted rows [k, d] fp64 of the heads that are left.
void keep_heads(DecoderLayer& layer, const HeadElimination& heads, const at::Tensor& rows) {
  const HeadCount left = heads.left();
  if (layer.shape.is_delta() || left.heads == layer.shape.num_attention_heads) {
    layer.o_proj.weight = written_by(kAttentionHalf, layer, rows);
    return;
  }
  const int64_t queries = layer.shape.num_attention_heads * layer.shape.head_dim;
  const int64_t keys = layer.shape.num_key_value_heads * layer.shape.head_dim;
  layer.shape.num_attention_heads = left.heads;
  layer.shape.num_key_value_heads = left.kv_heads;
  if (left.heads == 0) {
    remove_attention(layer);
    return;
  }
  const at::Tensor of_keys = heads.key_rows();
  std::vector<at::Tensor> kept{heads.query_rows(), of_keys + queries};
  if (layer.shape.has_values) kept.push_back(of_keys + queries + keys);
  layer.qkv = rows_of(layer.qkv, at::cat(kept));
  layer.o_proj.weight = written_by(kAttentionHalf, layer, rows);
}

// The streams through the layers: the compressed model's, the dense one's beside it once they differ, and that of held
// out text.
class Compressor {
 public:
  Compressor(const LayerWalk& walk, const SlicePlan& plan, SensitivitySource& sensitivity,
             const ModularOptions& options, const LayerTensorSink& sink, const JournalPhase& journal)
      : walk_(walk), plan_(plan), sensitivity_(sensitivity), options_(options), sink_(sink), journal_(journal) {}

  ModularResult run(const TokenWindows& calibration, const TokenWindows* held_out) {
    calibration_ = dense_ = held_out_ = walk_.empty_stream();
    const auto begin = [&] {
      sensitivity_.measure_unless_there();
      calibration_ = walk_.embed(calibration);
      if (held_out != nullptr) held_out_ = walk_.embed(*held_out);
    };
    run_journaled(walk_, journal_,
                  {.task = "Compressing",
                   .tokens = 2 * calibration.tokens() + (held_out != nullptr ? held_out->tokens() : 0),
                   .state = [&] { return state(); },
                   .begin = begin,
                   .visit = [&](LayerStep& step) { visit(step); },
                   .weights = at::kFloat});
    if (held_out == nullptr) return {};
    return {next_token_losses(walk_, load_head(walk_), std::move(held_out_), *held_out, "Held-out loss")
                .mean()
                .item<double>()};
  }

 private:
  WalkState state() {
    WalkState state;
    state.keep("calibration", calibration_);
    state.keep("dense", dense_);
    state.keep("held_out", held_out_);
    sensitivity_.join(state);
    return state;
  }

  bool towards_dense() const { return options_.refit != ModularRefit::kSelf; }
  // The compressed model's stream has left that of the dense one, and the latter is walked too.
  bool is_apart() const { return !dense_.chunks.empty(); }

  void visit(LayerStep& step) {
    const int64_t inner = step.layer.shape.intermediate_size;
    const int64_t wanted = plan_.dims.at(static_cast<size_t>(step.index()));
    const DecoderLayer original = with_dtype(step.layer, walk_.options().dtype);
    if (refits_readers()) refit_reader(step, kAttentionHalf);
    pass_attention(step, original);
    if (refits_readers()) refit_reader(step, kMlpHalf);
    if (wanted < inner || is_apart()) compress_mlp(step, original, wanted);
    const DecoderLayer now = with_dtype(step.layer, walk_.options().dtype);
    const auto mlp = [&](const at::Tensor& x) { return forward_half(kMlpHalf, now, step.context, x); };
    step.transform(calibration_, mlp, 4);
    step.transform(held_out_, mlp, 2);
    step.advance(calibration_.tokens() / (is_apart() ? 1 : 2));
    if (!sink_) return;
    for (const auto& [suffix, values] : layer_tensors(step.layer))
      sink_(layer_tensor_name(step.index(), suffix), values);
  }

  bool refits_readers() const { return options_.refit == ModularRefit::kAll && is_apart(); }

  // The layer in the dtype of the forward with readers as they are now; `original` has all else that is read by.
  DecoderLayer as_read(const LayerStep& step, const DecoderLayer& original) const {
    return refits_readers() ? with_dtype(step.layer, walk_.options().dtype) : original;
  }

  // Lets a matrix behind a norm make of the compressed model's stream what it makes of the dense one.
  void refit_reader(LayerStep& step, const HalfLayer& half) const {
    Linear& reads = step.layer.*half.reads;
    const int64_t width = walk_.config().hidden_size;
    InnerMoment moment(width, width, /*by_norm=*/false, walk_.options().device);
    const auto normed = [&](const at::Tensor& x) {
      return half_input(half, step.layer, step.context, x).to(at::kFloat);
    };
    visit_both(calibration_, dense_, [&](const at::Tensor& y, const at::Tensor& x) {
      check_interrupt();
      const at::Tensor seen = normed(y);
      moment.add(seen, normed(x) - seen, {});
    });
    const at::Tensor change = moment.solve(options_.ridge, "what " + name_of(half, step.index()) + " reads");
    reads.weight =
        at::add(reads.weight, kernels::matmul(reads.weight, change.t().to(at::kFloat)), options_.error_share);
  }

  // All streams through the attention, which loses heads, or is refitted towards the dense stream, if that is asked
  // for.
  void pass_attention(LayerStep& step, const DecoderLayer& original) {
    const DecoderLayer read = as_read(step, original);
    const HeadCount wanted = plan_.heads_of(static_cast<size_t>(step.index()), original.shape);
    const bool shrinks = wanted.heads < original.shape.num_attention_heads;
    if (shrinks && towards_dense() && !is_apart()) dense_ = calibration_.snapshot();
    if (is_apart())
      step.transform(
          dense_, [&](const at::Tensor& x) { return forward_half(kAttentionHalf, original, step.context, x); }, 4);
    if (shrinks || (is_apart() && options_.refit == ModularRefit::kAll)) {
      compress_attention(step, read, wanted);
    } else {
      step.transform(
          calibration_, [&](const at::Tensor& x) { return forward_half(kAttentionHalf, read, step.context, x); }, 4);
    }
    if (held_out_.chunks.empty()) return;
    const DecoderLayer now = with_dtype(step.layer, walk_.options().dtype);
    step.transform(
        held_out_, [&](const at::Tensor& x) { return forward_half(kAttentionHalf, now, step.context, x); }, 2);
  }

  // A gated delta net keeps its heads, all of which write.
  static HeadCount heads_of(const LayerShape& shape) {
    if (shape.is_delta()) return {shape.delta.value_heads, shape.delta.value_heads};
    return {shape.num_attention_heads, shape.num_key_value_heads};
  }
  static int64_t width_of_head(const LayerShape& shape) {
    return shape.is_delta() ? shape.delta.value_dim : shape.head_dim;
  }

  // `read` is the layer as it is, in the dtype of the forward.
  void compress_attention(LayerStep& step, const DecoderLayer& read, const HeadCount& wanted) {
    // What attention mixes is kept: it is needed for the moment and, behind that, for the output.
    ResidualStream mixed = calibration_.snapshot();
    step.transform(mixed, [&](const at::Tensor& x) { return half_inner(kAttentionHalf, read, step.context, x); }, 8);
    const Linear& output = step.layer.o_proj;
    const at::Device device = walk_.options().device;
    InnerMoment moment(output.weight.size(1), is_apart() ? output.weight.size(0) : 0, options_.by_norm, device);
    for (size_t chunk = 0; chunk < mixed.chunks.size(); ++chunk) {
      const at::Tensor x = calibration_.read(chunk), inner = mixed.read(chunk);
      at::Tensor error;
      if (is_apart()) error = dense_.read(chunk) - leave_half(kAttentionHalf, read, step.context, inner, x);
      moment.add(seen_inside(kAttentionHalf, read, step.context, inner), error, x);
    }
    const std::string where = mixed_in(step.index());
    HeadElimination heads(moment.take(where), seen_writer(kAttentionHalf, step.layer),
                          sensitivity_.directions(step.index(), StreamPlace::kInside, device), options_.ridge,
                          heads_of(read.shape), width_of_head(read.shape), where);
    if (!read.shape.is_delta()) heads.reduce_to(wanted);
    keep_heads(step.layer, heads, refitted(kAttentionHalf, step.layer, heads.columns(), moment));
    const DecoderLayer now = with_dtype(step.layer, walk_.options().dtype);
    const at::Tensor kept = heads.query_rows();
    const bool all = kept.numel() == read.o_proj.weight.size(1);
    size_t chunk = 0;
    calibration_.transform([&](const at::Tensor& x) {
      const at::Tensor inner = mixed.read(chunk++);
      if (kept.numel() == 0) return x;
      return leave_half(kAttentionHalf, now, step.context, all ? inner : inner.index_select(-1, kept), x);
    });
  }

  // The rows that are left, with what makes up for a share of the stream's error so far.
  at::Tensor refitted(const HalfLayer& half, const DecoderLayer& layer, const Elimination& elimination,
                      const InnerMoment& moment) const {
    at::Tensor rows = elimination.refitted();
    if (moment.cross().defined() && rows.size(0) > 0)
      rows.add_(attainable(half, layer, elimination.solve(moment.cross())), options_.error_share);
    return rows;
  }

  void compress_mlp(LayerStep& step, const DecoderLayer& original, int64_t wanted) {
    const int64_t inner = original.shape.intermediate_size, width = walk_.config().hidden_size;
    InnerMoment moment(inner, is_apart() ? width : 0, options_.by_norm, walk_.options().device);
    collect(step, original, as_read(step, original), moment);
    const at::Device device = walk_.options().device;
    at::Tensor second = moment.take(inside(step.index())), chosen;
    if (options_.choice == NeuronChoice::kLeverage) chosen = largest_leverage(second, wanted);
    Elimination elimination(std::move(second), seen_writer(kMlpHalf, step.layer),
                            sensitivity_.directions(step.index(), StreamPlace::kLeaving, device), options_.ridge,
                            inside(step.index()));
    if (chosen.defined()) {
      elimination.keep_only(chosen);
    } else {
      elimination.reduce_to(wanted);
    }
    keep_neurons(step.layer, elimination.kept(), refitted(kMlpHalf, step.layer, elimination, moment));
  }

  // Lets the inside of the MLP, whole as it still is, pass on the compressed model's stream. The dense stream goes
  // through the layer at the same time; what it is ahead then is the error.
  void collect(LayerStep& step, const DecoderLayer& original, const DecoderLayer& read, InnerMoment& moment) {
    const bool compares = is_apart();
    if (towards_dense() && !compares) dense_ = calibration_.snapshot();
    size_t chunk = 0;
    const auto add = [&](const at::Tensor& x, const at::Tensor& ahead) {
      const at::Tensor z = half_inner(kMlpHalf, read, step.context, x);
      at::Tensor error;
      if (compares) error = ahead - leave_half(kMlpHalf, read, step.context, z, x);
      moment.add(seen_inside(kMlpHalf, read, step.context, z), error, x);
    };
    if (!towards_dense()) {
      calibration_.visit([&](const at::Tensor& x) { add(x, {}); });
      return;
    }
    step.transform(
        dense_,
        [&](const at::Tensor& x) {
          at::Tensor ahead = forward_half(kMlpHalf, original, step.context, x);
          add(calibration_.read(chunk++), ahead);
          return ahead;
        },
        4);
  }

  const LayerWalk& walk_;
  const SlicePlan& plan_;
  SensitivitySource& sensitivity_;
  const ModularOptions& options_;
  const LayerTensorSink& sink_;
  const JournalPhase& journal_;
  ResidualStream calibration_, dense_, held_out_;
};

}  // namespace

void check_modular(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  if (config.is_sliced() || !config.has_whole_layers()) {
    throw_error(ErrorKind::kUsage, checkpoint.path().string(),
                ": is sliced, or has a layer that is an MLP alone; --method modular compresses dense models");
  }
  const bool alike = std::ranges::all_of(config.layers, [&](const LayerShape& shape) {
    return shape.intermediate_size == config.layers.front().intermediate_size;
  });
  if (!alike) {
    throw_error(ErrorKind::kUsage, checkpoint.path().string(),
                ": has MLPs of different sizes already; compress the model that it was made from, by a larger ratio");
  }
}

ModularResult compress_layers(const LayerWalk& walk, const SlicePlan& plan, const TokenWindows& calibration,
                              SensitivitySource& sensitivity, const ModularOptions& options,
                              const LayerTensorSink& sink, const TokenWindows* held_out, const JournalPhase& journal) {
  check_modular(walk.checkpoint());
  check_plan(plan, walk.config(), "the plan");
  return Compressor(walk, plan, sensitivity, options, sink, journal).run(calibration, held_out);
}

}  // namespace dynslice
