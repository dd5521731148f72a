// dynslice depth streamline: which consecutive layers go, and what stands for them.
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <utility>

#include "dynslice/depth/estimate.h"
#include "dynslice/depth/repair.h"
#include "dynslice/depth/replacement.h"
#include "dynslice/depth/shallow_losses.h"
#include "dynslice/jobs/depth.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/model/architecture.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/score/score.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/dtype.h"
#include "dynslice/train/estimate.h"
#include "dynslice/walk/walk_estimate.h"
#include "jobs/depth_frame.h"
#include "jobs/training.h"

namespace dynslice {
namespace {

// What is in front of the first layer cannot be repaired: there is no MLP whose output could be mapped. An MLP alone
// takes the place of the layer in front too, which must not be the model's first: that one has the attention by which
// caches tell their length.
int64_t first_start(const StreamlineRequest& request) {
  if (row_of(request.replace).is_mlp_alone) return 2;
  return request.replace == ReplacementKind::kNone ? 0 : 1;
}

bool is_trained(const StreamlineRequest& request) { return row_of(request.replace).is_trained; }

// Whether a map is fitted in the place of what goes; a layer's training begins with it.
bool is_repaired(const StreamlineRequest& request) { return row_of(request.replace).is_repaired; }

at::ScalarType stream_dtype_of(const StreamlineRequest& request) {
  return request.stream_dtype == StreamFormat::kBf16 ? at::kBFloat16 : at::kFloat;
}

// Options that would do nothing.
void check_streamlining(const StreamlineRequest& request) {
  static const std::set<std::string> kOfTraining = {"--loss",
                                                    "--stream-dtype",
                                                    "--epochs",
                                                    "--updates",
                                                    "--batch",
                                                    "--micro-batch",
                                                    "--learning-rate",
                                                    "--warmup",
                                                    "--weight-decay",
                                                    "--clip",
                                                    "--held-out",
                                                    "--patience",
                                                    "--validations",
                                                    "--seed",
                                                    "--final-learning-rate",
                                                    "--keep-activations"};
  if (!is_repaired(request) && request.common.is_given("--ridge")) {
    throw_error(ErrorKind::kUsage, "--ridge: no map is fitted with --replace ", name_of(request.replace),
                "; linear, linear-stream and layer have one");
  }
  for (const auto& [name, value] : request.common.given) {
    if (!is_trained(request) && kOfTraining.contains(name)) {
      throw_error(ErrorKind::kUsage, name, ": nothing is trained with --replace ", name_of(request.replace),
                  "; layer, swiglu and ffn are");
    }
  }
}

// Windows of text that choose what goes: a training has more than the choice needs.
constexpr int64_t kChoosingWindows = 32;
TokenWindows choosing_windows(const StreamlineRequest& request, const TokenWindows& windows) {
  return is_trained(request) ? windows.part(0, std::min(windows.count, kChoosingWindows)) : windows;
}

// Windows that fit the maps of a search, and those after them that measure the loss.
std::pair<int64_t, int64_t> search_windows(int64_t windows) {
  const int64_t held_out = std::max<int64_t>(1, windows / 4);
  return {windows - held_out, held_out};
}

// Whether the layers behind a cut compute their activations again on the way back; layers from `first` on are trained
// through.
bool recomputes_of(const StreamlineRequest& request, const ModelConfig& config, const ComputeOptions& compute,
                   int64_t first, const TrainingSetup& setup) {
  uint64_t bytes = 0;
  const int64_t end =
      request.loss == ReplacementLoss::kLanguageModel ? config.num_layers() : std::min(first + 1, config.num_layers());
  for (int64_t index = std::min(first, config.num_layers() - 1); index < end; ++index) {
    const LayerShape& shape = config.layers[static_cast<size_t>(index)];
    bytes += static_cast<uint64_t>(activation_bytes(shape, compute.dtype, setup.micro_tokens()));
  }
  return recomputes(request.training, bytes, compute.device);
}

// A layer that is trained in the place of others is repaired before, where that can be done.
bool is_repaired(const StreamlineRequest& request, const ModelConfig& config) {
  return is_repaired(request) && architecture_of(config).can_fold_maps();
}

class WindowSearch {
 public:
  WindowSearch(const StreamlineRequest& request, const DepthInputs& in, int64_t count)
      : request_(request),
        in_(in),
        count_(count),
        walk_(in.checkpoint, in.compute, in.windows().length, in.progress),
        choosing_(choosing_windows(request, in.windows())) {}

  DepthSearchResult run() {
    search_.window = count_;
    if (count_ == 0) return {plan_without(in_.layers(), {}), std::move(search_)};
    const int64_t start = choose();
    if (is_trained(request_)) return replace(start);
    std::optional<Repair> repair;
    if (request_.replace != ReplacementKind::kNone) repair = fit({start}, in_.windows(), "repair").front();
    search_.is_repaired = repair.has_value();
    remove(start, count_);
    if (repair) json_["ridge"] = request_.ridge;
    return {plan_without_window(in_.layers(), start, count_, repair), std::move(search_), std::move(json_)};
  }

 private:
  // A layer in the place of those from `start` on and of the one in front of them.
  DepthSearchResult replace(int64_t start) {
    const auto setup = training_setup(request_.training, in_.windows().count, in_.windows().length, in_.compute.device);
    const ReplacementKind kind = request_.replace;
    DecoderLayer layer = load_decoder_layer(in_.checkpoint, start - 1, at::kFloat, in_.compute.device);
    if (is_repaired(request_, in_.checkpoint.config())) {
      const TokenWindows text = in_.windows().part(0, std::min(choosing_.count, setup.sequences - setup.held_out));
      layer = repaired(std::move(layer), fit({start}, text, "repair").front());
    }
    ReplacementOptions replacing;
    replacing.loss = request_.loss;
    replacing.held_out = setup.held_out;
    replacing.stream_dtype = stream_dtype_of(request_);
    replacing.training = setup.options;
    replacing.recomputes = recomputes_of(request_, in_.checkpoint.config(), in_.compute, start + count_, setup);
    TrainedReplacement trained =
        train_replacement(walk_, in_.windows(), start - 1, count_ + 1, initial_replacement(kind, std::move(layer)),
                          replacing, in_.phase("training"));
    remove(start - 1, count_ + 1);
    json_["loss"] = name_of(request_.loss);
    json_["training"] = to_json(trained.result);
    search_.training = std::move(trained.result);
    return {plan_with_replacement(in_.layers(), start - 1, count_ + 1, std::move(trained.replacement)),
            std::move(search_), std::move(json_)};
  }

  // Notes which layers go.
  void remove(int64_t first, int64_t count) {
    search_.first = first;
    search_.count = count;
    std::vector<int64_t> removed(static_cast<size_t>(count));
    std::iota(removed.begin(), removed.end(), first);
    json_["removed"] = removed;
    json_["replace"] = name_of(request_.replace);
  }

  std::vector<Repair> fit(const std::vector<int64_t>& starts, const TokenWindows& windows, const std::string& name) {
    RepairOptions repair;
    repair.on_stream = request_.replace == ReplacementKind::kLinearStream;
    repair.ridge = request_.ridge;
    return fit_repairs(walk_, windows, starts, count_, repair, in_.phase(name));
  }

  int64_t choose() {
    if (request_.start) return *request_.start;
    return request_.window == WindowChoice::kCosine ? choose_by_cosine() : choose_by_loss();
  }

  int64_t choose_by_cosine() {
    const ScoreOptions score{parse_metric("window:" + std::to_string(count_)), false, in_.phase("scoring")};
    search_.scores = score_layers(walk_, choosing_, score);
    const LayerScores& scores = *search_.scores;
    const auto best = std::max_element(scores.values.begin() + first_start(request_), scores.values.end());
    json_["scores"] = to_json(scores);
    return best - scores.values.begin();
  }

  int64_t choose_by_loss() {
    const auto [fitting, held] = search_windows(choosing_.count);
    if (fitting < 1) throw_error(ErrorKind::kUsage, "--window search needs at least 2 windows: --samples 2 or more");
    std::vector<int64_t> starts(static_cast<size_t>(in_.layers() - count_ + 1 - first_start(request_)));
    std::iota(starts.begin(), starts.end(), first_start(request_));
    const std::vector<double> losses = losses_of(starts, fitting, held);
    json_["trials"] = OrderedJson::array();
    for (size_t i = 0; i < starts.size(); ++i) {
      search_.trials.push_back({starts[i], losses[i]});
      json_["trials"].push_back({{"start", starts[i]}, {"perplexity", std::exp(losses[i])}});
    }
    return starts[static_cast<size_t>(std::min_element(losses.begin(), losses.end()) - losses.begin())];
  }

  std::vector<double> losses_of(const std::vector<int64_t>& starts, int64_t fitting, int64_t held) {
    const JournalPhase phase = in_.phase("trying windows");
    if (const auto result = phase.result()) return result->at("losses").get<std::vector<double>>();
    std::vector<DepthPlan> plans;
    const bool fits = is_repaired(request_, in_.checkpoint.config());
    if (request_.replace == ReplacementKind::kNone || (request_.replace == ReplacementKind::kLayer && !fits)) {
      for (const int64_t start : starts) plans.push_back(plan_without_window(in_.layers(), start, count_, {}));
    } else if (!fits) {
      // An MLP starts as nothing, and stands for the layer in front of the window too.
      for (const int64_t start : starts) plans.push_back(plan_without_window(in_.layers(), start - 1, count_ + 1, {}));
    } else {
      std::vector<Repair> repairs = fit(starts, choosing_.part(0, fitting), "repairs of all windows");
      for (size_t i = 0; i < starts.size(); ++i)
        plans.push_back(plan_without_window(in_.layers(), starts[i], count_, std::move(repairs[i])));
    }
    const std::vector<double> losses = shallow_losses(walk_, choosing_.part(fitting, held), plans, phase);
    phase.finish({{"losses", losses}});
    return losses;
  }

  const StreamlineRequest& request_;
  const DepthInputs& in_;
  const int64_t count_;
  LayerWalk walk_;
  const TokenWindows choosing_;
  StreamlineSearch search_;
  OrderedJson json_ = OrderedJson::object();
};

DepthUse use_of_streamlining(const StreamlineRequest& request, const ModelConfig& config, int64_t count,
                             const TokenWindows& windows) {
  DepthUse use;
  const bool repairs = is_repaired(request, config);
  const int64_t layers = config.num_layers();
  const auto total = static_cast<double>(layers);
  const bool by_cosine = !request.start && request.window == WindowChoice::kCosine;
  use.streams = by_cosine ? count + 1 : 1;
  if (repairs) use.streams = std::max<int64_t>(use.streams, 3);
  if (repairs) use.matrices = 5;
  use.walks = (by_cosine ? 1 : 0) + (repairs ? 1 : 0);
  if (request.start || by_cosine) return use;
  const auto [fitting, held] = search_windows(windows.count);
  const double fit_share = static_cast<double>(fitting) / static_cast<double>(windows.count);
  const int64_t starts = layers - count + 1 - first_start(request);
  const int64_t branches = (starts * held + windows.count - 1) / windows.count;
  use.streams = std::max(use.streams, repairs ? std::max(2 * count + 1, branches + 1) : branches + 1);
  if (repairs) use.matrices += (starts + 1) / 2;  // the maps are fp32
  const double tried = static_cast<double>(starts) * (total - static_cast<double>(count)) / 2 / total;
  use.walks += (repairs ? fit_share : 0) + tried * (1 - fit_share);
  use.losses = branches;
  return use;
}

ResourceEstimate estimate_replacement(const StreamlineRequest& request, const Checkpoint& checkpoint,
                                      const ComputeOptions& compute, const TokenWindows& windows, int64_t count) {
  const ModelConfig& config = checkpoint.config();
  const auto setup = training_setup(request.training, windows.count, windows.length, compute.device);
  const int64_t layers = config.num_layers();
  const LayerShape& shape = config.layers.front();
  // Where the cut will be is not known yet: at the worst right behind the first layer.
  const int64_t end = request.start.value_or(1) + count;
  TrainingUse use;
  use.first_layer = request.loss == ReplacementLoss::kLanguageModel ? end - 1 : layers - 1;
  use.end_layer = layers;
  use.has_head = request.loss == ReplacementLoss::kLanguageModel;
  use.parameters =
      (2 * (shape.num_attention_heads + shape.num_key_value_heads) * shape.head_dim + 3 * shape.intermediate_size) *
      config.hidden_size;
  use.micro_tokens = setup.micro_tokens();
  use.trained_tokens = setup.trained_tokens();
  use.validated_tokens = setup.validated_tokens();
  use.recomputes = recomputes_of(request, config, compute, end, setup);
  use.streams = request.loss == ReplacementLoss::kLanguageModel ? 1 : 2;
  use.stream_item = element_bytes(stream_dtype_of(request));
  if (use.stream_item == 2) ++use.streams;  // beside the one that walks, in fp32
  use.walks = 1;
  return estimate_training(checkpoint, compute, amount_of(windows), use);
}

}  // namespace

Outcome<DepthResult> run(const StreamlineRequest& request, ProgressSink& progress) {
  // Weights and streams that are inference tensors could not be trained through.
  const c10::InferenceMode trains(false);
  const c10::NoGradGuard no_gradients;
  check_streamlining(request);
  if (is_trained(request)) check_training_dtype(request.common.dtype);
  return run_method(request, progress, [&](const Checkpoint& checkpoint) {
    const int64_t layers = checkpoint.config().num_layers(), count = layers_to_go(request, layers);
    const auto start = request.start;
    if (start && count > 0 && (*start < first_start(request) || *start + count > layers)) {
      throw_error(ErrorKind::kUsage, "--window ", *start, ": ", count, " layers from there do not fit; it must be ",
                  first_start(request), " to ", layers - count);
    }
    if (count > layers - first_start(request)) {
      throw_error(ErrorKind::kUsage, "--layers ", count, ": with --replace ", name_of(request.replace), " ",
                  first_start(request), " layer(s) must stay in front of those that go");
    }
    DepthMethod method{"streamline", "streamline-" + std::to_string(layers - count)};
    method.layers_left = layers - count;
    method.samples = is_trained(request) ? 128 : 32;
    method.at_most = is_trained(request);
    method.use = [&request, &checkpoint, count](const TokenWindows& windows) {
      return use_of_streamlining(request, checkpoint.config(), count, choosing_windows(request, windows));
    };
    if (count > 0 && is_repaired(request) && !is_trained(request)) check_repairable(checkpoint);
    if (is_trained(request) && count > 0) {
      check_whole_layers(checkpoint);
      method.training = [&request, &checkpoint, count](const ComputeOptions& compute, const TokenWindows& windows) {
        return estimate_replacement(request, checkpoint, compute, windows, count);
      };
    }
    method.search = [&request, count](const DepthInputs& in) { return WindowSearch(request, in, count).run(); };
    return method;
  });
}

}  // namespace dynslice
