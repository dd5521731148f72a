#include "dynslice/slice/global.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "aten.h"
#include "dynslice/model/architecture.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/blocks.h"
#include "dynslice/tensor/kernels.h"
#include "dynslice/walk/head.h"
#include "slice/basis.h"
#include "slice/directions.h"
#include "slice/refit.h"
#include "slice/rotate.h"

namespace dynslice {
namespace {

const Shortcut kAsItIs{};

at::Tensor token_frequencies(const TokenWindows& windows, int64_t vocab) {
  at::Tensor counts = at::ones({vocab}, at::kDouble);
  for (const int32_t id : windows.ids) counts.mutable_data_ptr<double>()[id] += 1;
  return counts / static_cast<double>(vocab + windows.tokens());
}

// Of the normalized streams at one place.
class PlaceMoment {
 public:
  // Without `is_weighed` no energy is measured.
  PlaceMoment(const LayerWalk& walk, bool is_weighed)
      : walk_(walk),
        is_weighed_(is_weighed),
        moment_(walk.config().hidden_size, walk.options().device),
        logarithms_(at::zeros({}, at::TensorOptions().dtype(at::kDouble).device(walk.options().device))) {}

  void add(const at::Tensor& x) {
    moment_.add(weightless_norm(walk_, x));
    if (!is_weighed_) return;
    logarithms_.add_(x.square().mean({-1}).clamp_min(walk_.config().rms_norm_eps).log().sum(at::kDouble));
    tokens_ += x.numel() / x.size(-1);
  }

  // The geometric mean over the tokens of ‖x_t‖² / d: tokens of massive activations do not rule it.
  double energy() const { return std::exp(logarithms_.item<double>() / static_cast<double>(tokens_)); }
  at::Tensor take(const std::string& where) { return moment_.take(where); }

 private:
  const LayerWalk& walk_;
  const bool is_weighed_;
  SecondMoment moment_;
  at::Tensor logarithms_;
  int64_t tokens_ = 0;
};

// Two walks: one of the dense model, which says what the basis is, and one that slices, with the dense stream beside
// that of the sliced model where something is refitted.
class GlobalSlicer {
 public:
  GlobalSlicer(const LayerWalk& walk, const SlicePlan& plan, SensitivitySource& sensitivity,
               const GlobalOptions& options, const TensorSink& sink, const JournalPhase& journal)
      : walk_(walk),
        config_(sliced_config(walk.config(), plan)),
        sensitivity_(sensitivity),
        options_(options),
        sink_(sink),
        journal_(journal) {}

  void run(const TokenWindows& calibration) {
    walk_.check_ids(calibration);
    dense_ = sliced_ = walk_.empty_stream();
    frequencies_ = token_frequencies(calibration, walk_.config().vocab_size);
    const int64_t layers = walk_.config().num_layers();
    const int64_t next = journal_.restore(state(), walk_.options().device).value_or(0);
    if (next < layers) find_basis(calibration, next);
    if (!basis_.defined()) choose_basis();
    if (next <= layers) begin_slicing(calibration);
    const WalkSpan span{std::max<int64_t>(0, next - layers),
                        [&](int64_t after) { journal_.save(layers + after, 2 * layers, state()); }};
    const int64_t tokens = refits() ? 2 * calibration.tokens() : 0;
    walk_.run("Slicing", tokens, [&](LayerStep& step) { slice_layer(step); }, at::kFloat, span);
    write_head();
  }

 private:
  // All that the walks remember between two layers.
  WalkState state() {
    WalkState state;
    state.keep("energy", energy_);
    state.keep("basis", basis_);
    state.keep("dense", dense_);
    state.keep("sliced", sliced_);
    if (asks_the_loss()) sensitivity_.join(state);
    return state;
  }

  bool asks_the_loss() const { return options_.directions != DirectionChoice::kEnergy; }
  bool refits() const { return options_.refit.is_any(); }
  int64_t width() const { return walk_.config().hidden_size; }

  void find_basis(const TokenWindows& calibration, int64_t first_layer) {
    if (asks_the_loss()) sensitivity_.measure_unless_there();
    if (first_layer == 0) {
      dense_ = walk_.embed(calibration);
      energy_ = at::zeros({width(), width()}, at::TensorOptions().dtype(at::kDouble).device(walk_.options().device));
      PlaceMoment entering = place_moment();
      dense_.visit([&](const at::Tensor& x) { entering.add(x); });
      add_place(entering, 0, StreamPlace::kInside);  // whose gradients are the nearest that are measured
    }
    const WalkSpan span{first_layer,
                        [&](int64_t next) { journal_.save(next, 2 * walk_.config().num_layers(), state()); }};
    const auto visit = [&](LayerStep& step) {
      PlaceMoment inside = place_moment(), behind = place_moment();
      step.transform(dense_, [&](const at::Tensor& x) {
        const at::Tensor middle = forward_half(kAttentionHalf, step.layer, step.context, x);
        inside.add(middle);
        at::Tensor leaving = forward_half(kMlpHalf, step.layer, step.context, middle);
        behind.add(leaving);
        return leaving;
      });
      add_place(inside, step.index(), StreamPlace::kInside);
      add_place(behind, step.index(), StreamPlace::kLeaving);
    };
    walk_.run("Finding the basis", calibration.tokens(), visit, std::nullopt, span);
  }

  bool weighs_places() const { return options_.directions == DirectionChoice::kPlaces; }
  PlaceMoment place_moment() const { return {walk_, weighs_places()}; }

  void add_place(PlaceMoment& place, int64_t layer, StreamPlace which) {
    const double weight = weighs_places() ? sensitivity_.size(layer, which) * place.energy() : 1;
    energy_.add_(place.take("the residual stream at layer " + std::to_string(layer)), weight);
  }

  void choose_basis() {
    at::Tensor moment = std::exchange(energy_, at::Tensor());
    at::Tensor gradients;
    if (options_.directions == DirectionChoice::kLoss) {
      for (int64_t layer = 0; layer < walk_.config().num_layers(); ++layer) {
        for (const StreamPlace place : {StreamPlace::kInside, StreamPlace::kLeaving}) {
          const at::Tensor one = sensitivity_.directions(layer, place, walk_.options().device).to(at::kDouble);
          gradients = gradients.defined() ? gradients.add_(one) : one.clone();
        }
      }
    }
    basis_ = leading_directions(std::move(moment), gradients, config_.hidden_size);
    // The head is tied: any basis of the span will do, so one that the final norm's weights are diagonal in.
    const at::Tensor weights = final_norm_weight();
    if (!config_.tie_word_embeddings || !weights.defined()) return;
    const at::Tensor inner = at::matmul(basis_.t(), basis_ * weights.to(at::kDouble).unsqueeze(1));
    basis_ = at::matmul(basis_, std::get<1>(at::linalg_eigh((inner + inner.t()) / 2)).flip({1}));
  }

  at::Tensor final_norm_weight() const { return load_head(walk_).norm; }

  void begin_slicing(const TokenWindows& calibration) {
    const std::string name = "model.embed_tokens.weight";
    write_rotated_rows(walk_, sink_, name, name, basis_, {});
    dense_ = sliced_ = walk_.empty_stream();
    if (!refits()) return;
    dense_ = walk_.embed(calibration);
    sliced_ = dense_.snapshot();
    sliced_.transform([&](const at::Tensor& x) { return rotated(x); });
  }

  // x Q
  at::Tensor rotated(const at::Tensor& x) const {
    return kernels::linear(x, basis_.t().to(at::kFloat).contiguous(), {});
  }

  void slice_layer(LayerStep& step) {
    fold_norms(step.layer);
    DecoderLayer sliced = step.layer;
    LayerShape& shape = sliced.shape;
    shape.input_width = shape.middle_width = shape.output_width = config_.hidden_size;
    for (const HalfLayer& half : kHalfLayers) slice_half(step, sliced, half);
    const at::Tensor ones = norm_weight();
    sliced.input_norm = sliced.post_attention_norm = ones;
    if (!sink_.write) return;
    for (const auto& [suffix, values] : layer_tensors(sliced))
      sink_.write(layer_tensor_name(step.index(), suffix), values);
  }

  // Of a norm whose own weights went into the matrices behind it: n(y) divides by d, an ordinary norm by D.
  at::Tensor norm_weight() const {
    const double share = static_cast<double>(config_.hidden_size) / static_cast<double>(width());
    return at::full({config_.hidden_size}, 1 / std::sqrt(share), at::TensorOptions().device(walk_.options().device));
  }

  void slice_half(LayerStep& step, DecoderLayer& sliced, const HalfLayer& half) {
    const std::string where = name_of(half, step.index());
    rotate_input(sliced.*half.reads, read_by(where));
    rotate_output(sliced.*half.writes, basis_);
    if (!refits()) return;
    const at::ScalarType dtype = walk_.options().dtype;
    advance(step, half, with_dtype(step.layer, dtype), dense_);
    refit_writer(walk_, options_.refit, step.context, half, sliced, streams(), kAsItIs, basis_,
                 "what is inside " + where);
    advance(step, half, with_dtype(sliced, dtype), sliced_);
  }

  // The streams are kept in the coordinates that they are read in.
  StreamPair streams() const { return {sliced_, dense_, kAsItIs, config_.hidden_size}; }

  at::Tensor read_by(const std::string& reader) const {
    return reading_basis(walk_, options_.refit, basis_, streams(), "what is read by " + reader);
  }

  void write_head() {
    const at::Tensor weights = final_norm_weight();
    const at::Tensor scale = weights.defined() ? weights : at::ones({width()}, basis_.options().dtype(at::kFloat));
    if (config_.tie_word_embeddings) {
      sink_.write("model.norm.weight", norm_weight() * tied_norm(scale.to(at::kDouble)).to(at::kFloat));
      return;
    }
    sink_.write("model.norm.weight", norm_weight());
    write_rotated_rows(walk_, sink_, "lm_head.weight", "lm_head.weight", read_by("the head"), scale);
  }

  // v [D] fp64, the weights of the final norm in front of a tied head E Q: the diagonal of Qᵀ W Q, or what brings the
  // logits E Q v n(y) closest to E W n(x) by least squares, tokens of the vocabulary weighing as often as they occur.
  at::Tensor tied_norm(const at::Tensor& weights) {
    at::Tensor norm = (basis_ * basis_ * weights.unsqueeze(1)).sum(0);
    if (options_.refit.refit != RotationRefit::kAll) return norm;
    InnerMoment moment = measure_readings(walk_, basis_, streams());
    const at::Tensor second = moment.take("what is read by the head");
    const at::Tensor crossed = moment.cross() + at::matmul(second, basis_.t());  // Σ n(y) n(x)ᵀ
    const at::Tensor seen = at::matmul(basis_.t(), vocabulary_moment());         // Qᵀ K
    at::Tensor normal = at::matmul(seen, basis_) * second;
    const double pull = options_.refit.ridge * normal.diagonal().mean().item<double>();
    const at::Tensor wanted = (seen * weights * crossed).sum(1) + norm * pull;
    normal.diagonal().add_(pull);
    return at::linalg_solve(normal, wanted.unsqueeze(1)).squeeze(1);
  }

  // K = Σ_v p_v (e_v - ē)(e_v - ē)ᵀ of the rows of the tied matrix [d, d] fp64, p being how often tokens occur in the
  // calibration text, and ē = Σ p_v e_v: what all logits have in common, no probability depends on.
  at::Tensor vocabulary_moment() const {
    const int64_t vocab = walk_.config().vocab_size;
    SecondMoment moment(width(), walk_.options().device);
    at::Tensor mean = at::zeros({width()}, basis_.options());
    for (int64_t begin = 0; begin < vocab; begin += kVocabularyBlock) {
      const int64_t count = std::min(kVocabularyBlock, vocab - begin);
      const at::Tensor rows =
          walk_.checkpoint()
              .load_rows("model.embed_tokens.weight", {vocab, width()}, begin, begin + count, at::kFloat)
              .to(walk_.options().device);
      const at::Tensor share = frequencies_.narrow(0, begin, count).unsqueeze(1).to(rows.device());
      mean.add_((rows * share).sum(0));
      moment.add(rows * share.sqrt().to(at::kFloat));
    }
    return moment.take("the embedding").sub_(at::outer(mean, mean));
  }

  const LayerWalk& walk_;
  const ModelConfig config_;  // of the sliced model
  SensitivitySource& sensitivity_;
  const GlobalOptions& options_;
  const TensorSink& sink_;
  const JournalPhase& journal_;
  at::Tensor energy_;       // of all streams, normalized [d, d] fp64
  at::Tensor basis_;        // Q [d, D] fp64
  at::Tensor frequencies_;  // of tokens in the calibration text [vocab] fp64, none of them 0
  ResidualStream dense_, sliced_;
};

}  // namespace

void check_narrower(const Checkpoint& checkpoint) {
  if (architecture_of(checkpoint.config()).can_be_narrower()) return;
  throw_error(ErrorKind::kUsage, checkpoint.path().string(), ": ", checkpoint.config().model_type,
              " has layer norms, which centre what they read, and a narrower stream in another basis must not be "
              "centred; give --basis block or layer");
}

void slice_globally(const LayerWalk& walk, const SlicePlan& plan, const TokenWindows& calibration,
                    SensitivitySource& sensitivity, const GlobalOptions& options, const TensorSink& sink,
                    const JournalPhase& journal) {
  check_sliceable(walk.checkpoint());
  check_narrower(walk.checkpoint());
  check_plan(plan, walk.config(), "the plan");
  GlobalSlicer(walk, plan, sensitivity, options, sink, journal).run(calibration);
}

}  // namespace dynslice
