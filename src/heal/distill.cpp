#include "dynslice/heal/distill.h"

#include <c10/core/GradMode.h>

#include <algorithm>

#include "aten.h"
#include "dynslice/heal/lora.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/inverse_norms.h"
#include "dynslice/tensor/ridge_fit.h"
#include "dynslice/train/objectives.h"

namespace dynslice {

// What the journal keeps of a layer: [before, after].
static void to_json(OrderedJson& json, const DistilledLayer& layer) { json = {layer.before, layer.after}; }
static void from_json(const OrderedJson& json, DistilledLayer& layer) {
  json.at(0).get_to(layer.before);
  json.at(1).get_to(layer.after);
}

namespace {

constexpr double kRidge = 1e-4;  // in units of the mean diagonal of the second moment

// P minimizing Σ_t w_t ‖P y_t - target_t‖² + λ ‖P‖², w = 1 / ‖target‖².
at::Tensor least_squares_map(const ResidualStream& from, const ResidualStream& to, int64_t windows) {
  RidgeFit fit(from.chunks.front().size(-1), to.chunks.front().size(-1), from.device);
  for (int64_t w = 0; w < windows; ++w) {
    const at::Tensor target = window_of(to, w).squeeze(0);
    const at::Tensor root_weight = inverse_norms(target);
    fit.add(window_of(from, w).squeeze(0) * root_weight, target * root_weight);
  }
  if (!fit.is_finite()) {
    throw_error(ErrorKind::kBadInput,
                "NaN or Inf in a residual stream; the weights of one of the models are damaged, or too large for the "
                "dtype (try --dtype fp32)");
  }
  return fit.solve(kRidge, "a residual stream").t().to(at::kFloat).contiguous();
}

class Distiller {
 public:
  Distiller(const LayerWalk& walk, const LayerWalk& original, const std::vector<int64_t>& boundaries,
            const DistillOptions& options, const JournalPhase& journal)
      : walk_(walk),
        original_(original),
        boundaries_(boundaries),
        options_(options),
        journal_(journal),
        updates_(make_lora(walk.config(), options.lora, walk.options().device)) {}

  DistillResult run(const TokenWindows& windows) {
    trained_windows_ = windows.count - options_.held_out;
    if (trained_windows_ < 1)
      throw_error(ErrorKind::kUsage, windows.count, " windows of text are too few; give more --samples");
    smaller_ = walk_.empty_stream();
    target_ = original_.empty_stream();
    const auto kept = journal_.restore(state(), walk_.options().device);
    if (!kept) {
      smaller_ = walk_.embed(windows);
      target_ = original_.embed(windows);
    }
    for (int64_t index = kept.value_or(0); index < walk_.config().num_layers(); ++index) {
      walk_original(index > 0 ? boundaries_[static_cast<size_t>(index - 1)] : 0,
                    boundaries_[static_cast<size_t>(index)]);
      heal_layer(index);
      journal_.save(index + 1, walk_.config().num_layers(), state());
    }
    result_.updates = std::move(updates_);
    return std::move(result_);
  }

 private:
  void walk_original(int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const DecoderLayer layer =
          load_decoder_layer(original_.checkpoint(), index, original_.options().dtype, original_.options().device);
      target_.transform([&](const at::Tensor& x) {
        check_interrupt();
        return forward_layer(layer, original_.context(), x);
      });
    }
  }

  void heal_layer(int64_t index) {
    TrainableLayers layer;
    layer.config = &walk_.config();
    layer.device = walk_.options().device;
    layer.dtype = walk_.options().dtype;
    layer.recomputes = options_.recomputes;
    layer.layers.push_back(load_decoder_layer(walk_.checkpoint(), index, layer.dtype, layer.device));
    layer.updates.push_back(updates_[static_cast<size_t>(index)]);
    StreamObjective objective(layer, smaller_, target_, trained_windows_, map_of(layer), options_.training.micro_batch);
    const std::vector<at::Tensor> parameters = parameters_of(layer.updates);
    for (const at::Tensor& parameter : parameters) parameter.requires_grad_();
    const std::string task = "Layer " + std::to_string(index) + " of " + std::to_string(walk_.config().num_layers());
    TrainingOptions training = options_.training;
    training.seed += static_cast<uint64_t>(index) << 32;  // orders and dropout of its own
    const TrainingResult trained = train(parameters, objective, training, task, walk_.progress());
    for (const at::Tensor& parameter : parameters) parameter.requires_grad_(false);
    DistilledLayer figures;
    if (!trained.points.empty()) {
      figures.before = trained.points.front().validation_loss;
      figures.after = figures.before;
      for (const TrainingPoint& point : trained.points) figures.after = std::min(figures.after, point.validation_loss);
    }
    result_.layers.push_back(figures);
    result_.tokens += trained.tokens;
    smaller_.transform([&](const at::Tensor& x) { return leaving(layer, x); });
  }

  // As many windows at a time as in training, so that it takes no more memory than that.
  at::Tensor leaving(const TrainableLayers& layer, const at::Tensor& x) const {
    std::vector<at::Tensor> parts;
    for (const at::Tensor& part : x.split(options_.training.micro_batch)) {
      parts.push_back(
          forward_trainable(layer.layers.front(), layer.context(x.size(1)), part, layer.dtype, &layer.updates.front()));
    }
    return at::cat(parts);
  }

  // From the layer's output, before it is trained, to the original's stream; undefined where both are in one basis.
  at::Tensor map_of(const TrainableLayers& layer) const {
    if (!walk_.config().is_sliced()) return {};
    ResidualStream out = smaller_.snapshot();
    out.transform([&](const at::Tensor& x) { return leaving(layer, x); });
    return least_squares_map(out, target_, trained_windows_);
  }

  WalkState state() {
    WalkState state;
    state.keep("smaller", smaller_);
    state.keep("original", target_);
    for (size_t layer = 0; layer < updates_.size(); ++layer) {
      for (LowRankUpdate& part : updates_[layer].parts) {
        state.keep(part.module + " a " + std::to_string(layer), part.a);
        state.keep(part.module + " b " + std::to_string(layer), part.b);
      }
    }
    state.keep("tokens", result_.tokens);
    state.keep("layers", result_.layers);
    return state;
  }

  const LayerWalk& walk_;
  const LayerWalk& original_;
  const std::vector<int64_t>& boundaries_;
  const DistillOptions& options_;
  const JournalPhase& journal_;
  std::vector<LayerUpdates> updates_;
  int64_t trained_windows_ = 0;
  ResidualStream smaller_, target_;
  DistillResult result_;
};

void check_boundaries(const std::vector<int64_t>& boundaries, int64_t layers, int64_t original_layers) {
  if (static_cast<int64_t>(boundaries.size()) == layers && !boundaries.empty() && std::ranges::is_sorted(boundaries) &&
      boundaries.front() >= 0 && boundaries.back() == original_layers) {
    return;
  }
  throw_error(ErrorKind::kUsage, "the model's layers cannot be placed in the original's: it has ", layers,
              " layers, the original ", original_layers, "; was it made from another model?");
}

}  // namespace

DistillResult heal_by_distillation(const LayerWalk& walk, const Checkpoint& original,
                                   const std::vector<int64_t>& boundaries, const TokenWindows& windows,
                                   const DistillOptions& options, const JournalPhase& journal) {
  check_boundaries(boundaries, walk.config().num_layers(), original.config().num_layers());
  if (original.config().hidden_size != walk.config().hidden_size || original.config().is_sliced()) {
    throw_error(ErrorKind::kUsage, original.path().string(),
                ": is no dense model of the same hidden size; --distill needs the one that the model was made from");
  }
  const c10::NoGradGuard no_gradients;
  const LayerWalk original_walk(original, walk.options(), windows.length, walk.progress());
  return Distiller(walk, original_walk, boundaries, options, journal).run(windows);
}

}  // namespace dynslice
