#include "dynslice/modular/modular.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "dynslice/model/head.h"
#include "dynslice/support/error.h"
#include "model/kernels.h"
#include "modular/elimination.h"
#include "modular/inner_moment.h"
#include "modular/leverage.h"

namespace dynslice {
namespace {

std::string inside(int64_t layer) { return "what is inside the MLP of layer " + std::to_string(layer); }

// Rows `kept` of both halves of gate_up.
Linear rows_of(const Linear& gate_up, const at::Tensor& kept, int64_t inner) {
  const at::Tensor both = at::cat({kept, kept + inner});
  return {gate_up.weight.index_select(0, both),
          gate_up.bias.defined() ? gate_up.bias.index_select(0, both) : at::Tensor()};
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
    const auto restored = journal_.restore(state(), walk_.options().device);
    if (!restored) {
      sensitivity_.measure_unless_there();
      calibration_ = walk_.embed(calibration);
      if (held_out != nullptr) held_out_ = walk_.embed(*held_out);
    }
    const WalkSpan span{restored ? restored->next_layer : 0,
                        [&](int64_t next) { journal_.save(next, walk_.config().num_layers(), state()); }};
    const int64_t tokens = 2 * calibration_.tokens() + held_out_.tokens();
    walk_.run("Compressing", tokens, [&](LayerStep& step) { visit(step); }, at::kFloat, span);
    if (held_out == nullptr) return {};
    return {next_token_losses(walk_, load_head(walk_), std::move(held_out_), *held_out, "Held-out loss")
                .mean()
                .item<double>()};
  }

 private:
  WalkState state() {
    WalkState state;
    state.streams = {{"calibration", &calibration_}, {"dense", &dense_}, {"held_out", &held_out_}};
    sensitivity_.join(state);
    return state;
  }

  // The compressed model's stream has left that of the dense one, and the latter is walked too.
  bool is_apart() const { return !dense_.chunks.empty(); }

  void visit(LayerStep& step) {
    const int64_t inner = step.layer.shape.intermediate_size;
    const int64_t wanted = plan_.dims.at(static_cast<size_t>(step.index()));
    const DecoderLayer original = with_dtype(step.layer, walk_.options().dtype);
    pass_attention(step, original);
    if (wanted < inner || is_apart()) compress(step, original, wanted);
    const DecoderLayer now = with_dtype(step.layer, walk_.options().dtype);
    const auto mlp = [&](const at::Tensor& x) { return forward_mlp(now, step.context, x); };
    step.transform(calibration_, mlp, 4);
    step.transform(held_out_, mlp, 2);
    step.advance(calibration_.tokens() / (is_apart() ? 1 : 2));
    if (!sink_) return;
    for (const auto& [suffix, values] : layer_tensors(step.layer, walk_.config().head_dim))
      sink_(layer_tensor_name(step.index(), suffix), values);
  }

  // All streams through the attention, whose output matrix is refitted towards the dense stream if that is asked for.
  void pass_attention(LayerStep& step, const DecoderLayer& original) {
    const auto attention = [&](const at::Tensor& x) { return forward_attention(original, step.context, x); };
    if (is_apart()) step.transform(dense_, attention, 4);
    if (is_apart() && options_.refit_attention) {
      refit_attention(step, original);
    } else {
      step.transform(calibration_, attention, 4);
    }
    const DecoderLayer now = with_dtype(step.layer, walk_.options().dtype);
    step.transform(held_out_, [&](const at::Tensor& x) { return forward_attention(now, step.context, x); }, 2);
  }

  void refit_attention(LayerStep& step, const DecoderLayer& original) {
    // What attention mixes is kept: it is needed for the moment and, behind that, for the output.
    ResidualStream mixed = calibration_;
    step.transform(mixed, [&](const at::Tensor& x) { return attention_inner(original, step.context, x); }, 8);
    Linear& output = step.layer.o_proj;
    InnerMoment moment(output.weight.size(1), output.weight.size(0), options_.by_norm, walk_.options().device);
    for (size_t chunk = 0; chunk < mixed.chunks.size(); ++chunk) {
      const at::Tensor x = chunk_of(calibration_, chunk), inner = chunk_of(mixed, chunk);
      at::Tensor own = kernels::linear(inner, original.o_proj.weight, original.o_proj.bias);
      const at::Tensor ahead = chunk_of(dense_, chunk);
      moment.add(inner, ahead - add_residual(std::move(own), x, original.attn_shortcut), x);
    }
    const std::string where = "what attention mixes in layer " + std::to_string(step.index());
    const Elimination solver(moment.take(where), output.weight.t(), {}, options_.ridge, where);
    const at::Tensor change = solver.solve(moment.cross()).mul_(options_.error_share);
    output.weight = output.weight + change.t().to(at::kFloat);
    const Linear now = with_dtype(step.layer, walk_.options().dtype).o_proj;
    size_t chunk = 0;
    step.transform(
        calibration_,
        [&](const at::Tensor& x) {
          at::Tensor branch = kernels::linear(chunk_of(mixed, chunk++), now.weight, now.bias);
          return add_residual(std::move(branch), x, original.attn_shortcut);
        },
        8);
  }

  // On the device; the pages of a spilled chunk are given back.
  static at::Tensor chunk_of(const ResidualStream& stream, size_t index) {
    const at::Tensor& kept = stream.chunks[index];
    if (!stream.store) return kept.to(stream.device);
    const at::Tensor values = kept.to(stream.device, /*non_blocking=*/false, /*copy=*/true);
    stream.store->drop_pages(kept);
    return values;
  }

  void compress(LayerStep& step, const DecoderLayer& original, int64_t wanted) {
    const int64_t inner = original.shape.intermediate_size, width = walk_.config().hidden_size;
    InnerMoment moment(inner, is_apart() ? width : 0, options_.by_norm, walk_.options().device);
    collect(step, original, moment);
    Linear& down = step.layer.down_proj;
    const at::Device device = walk_.options().device;
    at::Tensor second = moment.take(inside(step.index())), chosen;
    if (options_.choice == NeuronChoice::kLeverage) chosen = largest_leverage(second, wanted);
    Elimination elimination(std::move(second), down.weight.t(), sensitivity_.directions(step.index(), device),
                            options_.ridge, inside(step.index()));
    if (chosen.defined()) {
      elimination.keep_only(chosen);
    } else {
      elimination.reduce_to(wanted);
    }
    at::Tensor rows = elimination.refitted();
    if (moment.cross().defined()) rows.add_(elimination.solve(moment.cross()), options_.error_share);
    const at::Tensor kept = elimination.kept();
    step.layer.gate_up = rows_of(step.layer.gate_up, kept, inner);
    down.weight = rows.t().to(at::kFloat).contiguous();
    step.layer.shape.intermediate_size = wanted;
  }

  // Lets the inside of the MLP, whole as it still is, pass on the compressed model's stream. The dense stream goes
  // through the layer at the same time; what it is ahead then is the error.
  void collect(LayerStep& step, const DecoderLayer& original, InnerMoment& moment) {
    const bool compares = is_apart();
    if (options_.towards_dense && !compares) dense_ = calibration_;  // chunks are replaced, not overwritten
    size_t chunk = 0;
    const auto add = [&](const at::Tensor& x, const at::Tensor& ahead) {
      const at::Tensor z = mlp_inner(original, step.context, x);
      at::Tensor error;
      if (compares) {
        at::Tensor own = kernels::linear(z, original.down_proj.weight, original.down_proj.bias);
        error = ahead - add_residual(std::move(own), x, original.mlp_shortcut);
      }
      moment.add(z, error, x);
    };
    if (!options_.towards_dense) {
      calibration_.visit([&](const at::Tensor& x) { add(x, {}); });
      return;
    }
    step.transform(
        dense_,
        [&](const at::Tensor& x) {
          at::Tensor ahead = forward_mlp(original, step.context, x);
          add(chunk_of(calibration_, chunk++), ahead);
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

LossCurve curve_of(const std::vector<Removal>& removals, double scale) {
  LossCurve curve{{0.0}};
  for (const Removal& removal : removals) curve.losses.push_back(removal.loss * scale);
  return curve;
}

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

ModularResult compress_mlps(const LayerWalk& walk, const SlicePlan& plan, const TokenWindows& calibration,
                            SensitivitySource& sensitivity, const ModularOptions& options, const LayerTensorSink& sink,
                            const TokenWindows* held_out, const JournalPhase& journal) {
  check_modular(walk.checkpoint());
  check_plan(plan, walk.config(), "the plan");
  return Compressor(walk, plan, sensitivity, options, sink, journal).run(calibration, held_out);
}

std::vector<LossCurve> measure_loss_curves(const LayerWalk& walk, const TokenWindows& calibration,
                                           SensitivitySource& sensitivity, const ModularOptions& options, int64_t least,
                                           const JournalPhase& journal) {
  check_modular(walk.checkpoint());
  std::vector<LossCurve> curves;
  ResidualStream stream = walk.empty_stream();
  WalkState state;
  state.streams.emplace_back("stream", &stream);
  sensitivity.join(state);
  WalkSpan span;
  if (const auto restored = journal.restore(state, walk.options().device)) {
    span.first_layer = restored->next_layer;
    for (const OrderedJson& losses : restored->values.at("curves"))
      curves.push_back({losses.get<std::vector<double>>()});
  } else {
    sensitivity.measure_unless_there();
    stream = walk.embed(calibration);
  }
  span.after_layer = [&](int64_t next) {
    state.values["curves"] = OrderedJson::array();
    for (const LossCurve& curve : curves) state.values["curves"].push_back(curve.losses);
    journal.save(next, walk.config().num_layers(), state);
  };
  const auto visit = [&](LayerStep& step) {
    InnerMoment moment(step.layer.shape.intermediate_size, 0, options.by_norm, walk.options().device);
    step.transform(stream, [&](const at::Tensor& x) {
      const at::Tensor middle = forward_attention(step.layer, step.context, x);
      const at::Tensor z = mlp_inner(step.layer, step.context, middle);
      moment.add(z, {}, middle);
      at::Tensor added = kernels::linear(z, step.layer.down_proj.weight, step.layer.down_proj.bias);
      return add_residual(std::move(added), middle, step.layer.mlp_shortcut);
    });
    Elimination elimination(moment.take(inside(step.index())), step.layer.down_proj.weight.t(),
                            sensitivity.directions(step.index(), walk.options().device), options.ridge,
                            inside(step.index()));
    elimination.reduce_to(least);
    curves.push_back(curve_of(elimination.removals(), sensitivity.size(step.index()) / moment.weight()));
  };
  walk.run("Measuring losses", stream.tokens(), visit, std::nullopt, span);
  return curves;
}

}  // namespace dynslice
