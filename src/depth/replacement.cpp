#include "dynslice/depth/replacement.h"

#include "aten.h"
#include "dynslice/depth/repair.h"
#include "dynslice/support/error.h"
#include "dynslice/train/objectives.h"
#include "dynslice/walk/head.h"

namespace dynslice {
namespace {

// The streams that the training reads: what enters the first of the layers that go, and what leaves the last.
struct Streams {
  ResidualStream entered, left;
};

// A copy of the stream in `dtype`, in the same store.
ResidualStream stored(const LayerWalk& walk, const ResidualStream& stream, at::ScalarType dtype) {
  if (dtype == at::kFloat) return stream.snapshot();
  ResidualStream copy = walk.empty_stream();
  for (const at::Tensor& chunk : stream.chunks) {
    copy.chunks.emplace_back();
    copy.replace(copy.chunks.size() - 1, chunk.to(dtype));
  }
  return copy;
}

Streams walk_streams(const LayerWalk& walk, const TokenWindows& windows, int64_t start, int64_t end,
                     at::ScalarType dtype) {
  ResidualStream stream = walk.embed(windows);
  Streams streams{walk.empty_stream(), walk.empty_stream()};
  if (start == 0) streams.entered = stored(walk, stream, dtype);
  ProgressTask progress(walk.progress(), "Streams to learn from", windows.tokens() * end, "token-layers");
  for (int64_t index = 0; index < end; ++index) {
    const DecoderLayer layer =
        load_decoder_layer(walk.checkpoint(), index, walk.options().dtype, walk.options().device);
    stream.transform([&](const at::Tensor& x) {
      progress.advance(x.size(0) * x.size(1));
      return forward_layer(layer, walk.context(), x);
    });
    if (index + 1 == start) streams.entered = stored(walk, stream, dtype);
  }
  if (end > start) streams.left = stored(walk, stream, dtype);
  return streams;
}

TrainableLayers layers_of(const LayerWalk& walk, DecoderLayer replacement, bool recomputes) {
  TrainableLayers layers;
  layers.config = &walk.config();
  layers.device = walk.options().device;
  layers.dtype = walk.options().dtype;
  layers.recomputes = recomputes;
  layers.layers.push_back(std::move(replacement));
  return layers;
}

void load_layers_from(const LayerWalk& walk, int64_t first, TrainableLayers& layers) {
  ProgressTask progress(walk.progress(), "Loading", walk.config().num_layers() - first, "layers");
  for (int64_t index = first; index < walk.config().num_layers(); ++index) {
    layers.layers.push_back(load_decoder_layer(walk.checkpoint(), index, layers.dtype, layers.device));
    progress.advance(1);
  }
}

}  // namespace

DecoderLayer initial_replacement(ReplacementKind kind, DecoderLayer layer) {
  layer = with_dtype(std::move(layer), at::kFloat);
  if (kind == ReplacementKind::kLayer) return layer;
  layer.shape.num_attention_heads = layer.shape.num_key_value_heads = 0;
  layer.shape.delta = {};
  remove_attention(layer);
  if (kind == ReplacementKind::kSwiglu) return layer;
  layer.shape.is_gated = false;
  const auto gate_of = [&](const at::Tensor& gate_up) {
    return gate_up.defined() ? gate_up.narrow(0, 0, layer.shape.intermediate_size).clone() : gate_up;
  };
  layer.gate_up = {gate_of(layer.gate_up.weight), gate_of(layer.gate_up.bias)};
  // A layer that adds nothing at first; a norm behind it would make something of next to nothing.
  if (layer.shape.has_branch_norms) {
    layer.mlp_branch_norm = at::zeros_like(layer.mlp_branch_norm);
    return layer;
  }
  layer.down_proj.weight = at::zeros_like(layer.down_proj.weight);
  if (layer.down_proj.bias.defined()) layer.down_proj.bias = at::zeros_like(layer.down_proj.bias);
  return layer;
}

TrainedReplacement train_replacement(const LayerWalk& walk, const TokenWindows& windows, int64_t start, int64_t count,
                                     DecoderLayer initial, const ReplacementOptions& options,
                                     const JournalPhase& journal) {
  check_whole_layers(walk.checkpoint());
  const int64_t trained = windows.count - options.held_out;
  if (trained < 1 || options.held_out < 0) {
    throw_error(ErrorKind::kUsage, windows.count, " windows of text, ", options.held_out,
                " of them held out: nothing is left to train on; give more --samples");
  }
  const bool by_stream = options.loss == ReplacementLoss::kStream;
  const Streams streams = walk_streams(walk, windows, start, by_stream ? start + count : start, options.stream_dtype);
  TrainableLayers layers = layers_of(walk, std::move(initial), options.recomputes);
  const std::vector<at::Tensor> parameters = make_trainable(layers.layers.front());

  TrainedReplacement trained_one;
  if (by_stream) {
    StreamObjective objective(layers, streams.entered, streams.left, trained, {}, options.training.micro_batch);
    trained_one.result = train(parameters, objective, options.training, "Training", walk.progress(), journal);
  } else {
    load_layers_from(walk, start + count, layers);
    const Head head = load_head(walk);
    const auto entry = [&](std::span<const int64_t> examples, bool held_out, int64_t) {
      std::vector<at::Tensor> entering;
      for (const int64_t example : examples)
        entering.push_back(window_of(streams.entered, example + (held_out ? trained : 0)));
      return at::cat(entering);
    };
    LanguageModelObjective objective(layers, head, entry, examples_of(windows.part(0, trained)),
                                     examples_of(windows.part(trained, options.held_out)),
                                     options.training.micro_batch);
    trained_one.result = train(parameters, objective, options.training, "Training", walk.progress(), journal);
  }
  trained_one.replacement = {start, std::move(layers.layers.front())};
  for (const at::Tensor& parameter : parameters) parameter.requires_grad_(false);
  return trained_one;
}

DepthPlan plan_with_replacement(int64_t layers, int64_t start, int64_t count, Replacement replacement) {
  DepthPlan plan = plan_without_window(layers, start + 1, count - 1, std::nullopt);
  plan.replacement = std::move(replacement);
  return plan;
}

}  // namespace dynslice
