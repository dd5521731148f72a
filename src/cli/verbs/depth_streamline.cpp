// dynslice depth streamline: which consecutive layers go, and what stands for them.
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <charconv>
#include <numeric>
#include <set>

#include "cli/show/training.h"
#include "cli/verbs/depth_frame.h"
#include "cli/verbs/verbs.h"
#include "dynslice/depth/estimate.h"
#include "dynslice/depth/repair.h"
#include "dynslice/depth/replacement.h"
#include "dynslice/depth/shallow_losses.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/jobs/training.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/score/score.h"
#include "dynslice/support/error.h"
#include "dynslice/train/estimate.h"

namespace dynslice::cli {
namespace {

// The first layer that goes, when it is named.
std::optional<int64_t> named_start(const StreamlineRequest& options) {
  if (options.window == "search" || options.window == "cosine") return std::nullopt;
  int64_t start = 0;
  const char* last = options.window.data() + options.window.size();
  const auto [end, error] = std::from_chars(options.window.data(), last, start);
  if (error != std::errc() || end != last || start < 0) {
    throw_error(ErrorKind::kUsage, "--window ", options.window, ": is not one of search, cosine, or a layer's number");
  }
  return start;
}

// What is in front of the first layer cannot be repaired: there is no MLP whose output could be mapped. An MLP alone
// takes the place of the layer in front too, which must not be the model's first: that one has the attention by which
// caches tell their length.
int64_t first_start(const StreamlineRequest& options) {
  if (options.replace == "ffn" || options.replace == "swiglu") return 2;
  return options.replace == "none" ? 0 : 1;
}

bool is_trained(const StreamlineRequest& options) {
  return options.replace == "layer" || options.replace == "ffn" || options.replace == "swiglu";
}

// Whether a map is fitted in the place of what goes; a layer's training begins with it.
bool is_repaired(const StreamlineRequest& options) {
  return options.replace == "linear" || options.replace == "linear-stream" || options.replace == "layer";
}

// Options that would do nothing.
void check_options(const StreamlineRequest& options) {
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
  if (!is_repaired(options) && options.common.is_given("--ridge")) {
    throw_error(ErrorKind::kUsage, "--ridge: no map is fitted with --replace ", options.replace,
                "; linear, linear-stream and layer have one");
  }
  for (const auto& [name, value] : options.common.given) {
    if (!is_trained(options) && kOfTraining.contains(name)) {
      throw_error(ErrorKind::kUsage, name, ": nothing is trained with --replace ", options.replace,
                  "; layer, swiglu and ffn are");
    }
  }
}

// Windows of text that choose what goes: a training has more than the choice needs.
constexpr int64_t kChoosingWindows = 32;
TokenWindows choosing_windows(const StreamlineRequest& options, const TokenWindows& windows) {
  return is_trained(options) ? windows.part(0, std::min(windows.count, kChoosingWindows)) : windows;
}

// Windows that fit the maps of a search, and those after them that measure the loss.
std::pair<int64_t, int64_t> search_windows(int64_t windows) {
  const int64_t held_out = std::max<int64_t>(1, windows / 4);
  return {windows - held_out, held_out};
}

// Whether the layers behind a cut compute their activations again on the way back; layers from `first` on are trained
// through.
bool recomputes_of(const StreamlineRequest& options, const ModelConfig& config, const ComputeOptions& compute,
                   int64_t first, const TrainingSetup& setup) {
  uint64_t bytes = 0;
  const int64_t end = options.loss == "lm" ? config.num_layers() : std::min(first + 1, config.num_layers());
  for (int64_t index = std::min(first, config.num_layers() - 1); index < end; ++index) {
    const LayerShape& shape = config.layers[static_cast<size_t>(index)];
    bytes += static_cast<uint64_t>(activation_bytes(shape, config.head_dim, compute.dtype, setup.micro_tokens()));
  }
  return recomputes(options.training, bytes, compute.device);
}

class Streamlining {
 public:
  Streamlining(const StreamlineRequest& options, const Search& in, int64_t count)
      : options_(options),
        in_(in),
        count_(count),
        walk_(in.checkpoint, in.compute, in.windows().length, in.progress),
        choosing_(choosing_windows(options, in.windows())) {}

  Found run() {
    Found found;
    if (count_ == 0) {
      found.plan = plan_without(in_.layers(), {});
      found.summary = "Nothing was to go.\n";
      return found;
    }
    const int64_t start = choose(found);
    if (is_trained(options_)) {
      replace(start, found);
      return found;
    }
    std::optional<Repair> repair;
    if (options_.replace != "none") repair = fit({start}, in_.windows(), "repair").front();
    found.plan = plan_without_window(in_.layers(), start, count_, repair);
    std::vector<int64_t> removed(static_cast<size_t>(count_));
    std::iota(removed.begin(), removed.end(), start);
    found.json["removed"] = removed;
    found.json["replace"] = options_.replace;
    if (repair) found.json["ridge"] = options_.ridge;
    found.summary = "Removed: layers " + span_of(start, start + count_ - 1) +
                    (repair ? "; a linear map makes up for them (" + options_.replace + ").\n" : ".\n");
    return found;
  }

 private:
  // A layer in the place of those from `start` on and of the one in front of them.
  void replace(int64_t start, Found& found) {
    const auto setup = training_setup(options_.training, in_.windows().count, in_.windows().length, in_.compute.device);
    const ReplacementKind kind = parse_replacement(options_.replace);
    DecoderLayer layer = load_decoder_layer(in_.checkpoint, start - 1, at::kFloat, in_.compute.device);
    if (kind == ReplacementKind::kLayer) {
      const TokenWindows text = in_.windows().part(0, std::min(choosing_.count, setup.sequences - setup.held_out));
      layer = repaired(std::move(layer), fit({start}, text, "repair").front());
    }
    ReplacementOptions replacing;
    replacing.loss = options_.loss == "mse" ? ReplacementLoss::kStream : ReplacementLoss::kLanguageModel;
    replacing.held_out = setup.held_out;
    replacing.stream_dtype = options_.stream_dtype == "bf16" ? at::kBFloat16 : at::kFloat;
    replacing.training = setup.options;
    replacing.recomputes = recomputes_of(options_, in_.checkpoint.config(), in_.compute, start + count_, setup);
    TrainedReplacement trained =
        train_replacement(walk_, in_.windows(), start - 1, count_ + 1, initial_replacement(kind, std::move(layer)),
                          replacing, in_.phase("training"));
    found.plan = plan_with_replacement(in_.layers(), start - 1, count_ + 1, std::move(trained.replacement));
    std::vector<int64_t> removed(static_cast<size_t>(count_ + 1));
    std::iota(removed.begin(), removed.end(), start - 1);
    found.json["removed"] = removed;
    found.json["replace"] = options_.replace;
    found.json["loss"] = options_.loss;
    found.json["training"] = to_json(trained.result);
    const bool as_perplexity = options_.loss == "lm";
    found.training_header = training_header(as_perplexity);
    found.training_rows = training_rows(trained.result, as_perplexity);
    found.summary = "Removed: layers " + span_of(start - 1, start + count_ - 1) + "; a trained " +
                    (kind == ReplacementKind::kLayer ? "layer" : "MLP (" + options_.replace + ")") +
                    " stands for them.\n" + training_summary(trained.result);
  }

  std::vector<Repair> fit(const std::vector<int64_t>& starts, const TokenWindows& windows, const std::string& name) {
    RepairOptions repair;
    repair.on_stream = options_.replace == "linear-stream";
    repair.ridge = options_.ridge;
    return fit_repairs(walk_, windows, starts, count_, repair, in_.phase(name));
  }

  int64_t choose(Found& found) {
    if (const auto named = named_start(options_)) return *named;
    return options_.window == "cosine" ? choose_by_cosine(found) : choose_by_loss(found);
  }

  int64_t choose_by_cosine(Found& found) {
    dynslice::ScoreOptions score{parse_metric("window:" + std::to_string(count_)), false, in_.phase("scoring")};
    const LayerScores scores = score_layers(walk_, choosing_, score);
    const auto best = std::max_element(scores.values.begin() + first_start(options_), scores.values.end());
    found.json["scores"] = to_json(scores);
    found.header = {"layers", "cosine"};
    for (size_t i = 0; i < scores.values.size(); ++i) {
      const auto first = static_cast<int64_t>(i);
      found.rows.push_back({span_of(first, first + count_ - 1), format_fixed(scores.values[i], 6)});
    }
    return best - scores.values.begin();
  }

  int64_t choose_by_loss(Found& found) {
    const auto [fitting, held] = search_windows(choosing_.count);
    if (fitting < 1) throw_error(ErrorKind::kUsage, "--window search needs at least 2 windows: --samples 2 or more");
    std::vector<int64_t> starts(static_cast<size_t>(in_.layers() - count_ + 1 - first_start(options_)));
    std::iota(starts.begin(), starts.end(), first_start(options_));
    const std::vector<double> losses = losses_of(starts, fitting, held);
    found.header = {"layers", "perplexity, held out"};
    found.json["trials"] = OrderedJson::array();
    for (size_t i = 0; i < starts.size(); ++i) {
      found.rows.push_back({span_of(starts[i], starts[i] + count_ - 1), format_fixed(perplexity_of(losses[i]), 3)});
      found.json["trials"].push_back({{"start", starts[i]}, {"perplexity", perplexity_of(losses[i])}});
    }
    return starts[static_cast<size_t>(std::min_element(losses.begin(), losses.end()) - losses.begin())];
  }

  std::vector<double> losses_of(const std::vector<int64_t>& starts, int64_t fitting, int64_t held) {
    const JournalPhase phase = in_.phase("trying windows");
    if (const auto result = phase.result()) return result->at("losses").get<std::vector<double>>();
    std::vector<DepthPlan> plans;
    if (options_.replace == "none") {
      for (const int64_t start : starts) plans.push_back(plan_without_window(in_.layers(), start, count_, {}));
    } else if (!is_repaired(options_)) {
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

  const StreamlineRequest& options_;
  const Search& in_;
  const int64_t count_;
  LayerWalk walk_;
  const TokenWindows choosing_;
};

DepthUse use_of_streamlining(const StreamlineRequest& options, int64_t layers, int64_t count,
                             const TokenWindows& windows) {
  DepthUse use;
  const bool repairs = is_repaired(options);
  const auto total = static_cast<double>(layers);
  use.streams = options.window == "cosine" ? count + 1 : 1;
  if (repairs) use.streams = std::max<int64_t>(use.streams, 3);
  if (repairs) use.matrices = 5;
  use.walks = (options.window == "cosine" ? 1 : 0) + (repairs ? 1 : 0);
  if (options.window != "search") return use;
  const auto [fitting, held] = search_windows(windows.count);
  const double fit_share = static_cast<double>(fitting) / static_cast<double>(windows.count);
  const int64_t starts = layers - count + 1 - first_start(options);
  const int64_t branches = (starts * held + windows.count - 1) / windows.count;
  use.streams = std::max(use.streams, repairs ? std::max(2 * count + 1, branches + 1) : branches + 1);
  if (repairs) use.matrices += (starts + 1) / 2;  // the maps are fp32
  const double tried = static_cast<double>(starts) * (total - static_cast<double>(count)) / 2 / total;
  use.walks += (repairs ? fit_share : 0) + tried * (1 - fit_share);
  use.losses = branches;
  return use;
}

ResourceEstimate estimate_replacement(const StreamlineRequest& options, const Checkpoint& checkpoint,
                                      const ComputeOptions& compute, const TokenWindows& windows, int64_t count) {
  const ModelConfig& config = checkpoint.config();
  const auto setup = training_setup(options.training, windows.count, windows.length, compute.device);
  const int64_t layers = config.num_layers();
  const LayerShape& shape = config.layers.front();
  // Where the cut will be is not known yet: at the worst right behind the first layer.
  const int64_t end = named_start(options).value_or(1) + count;
  TrainingUse use;
  use.first_layer = options.loss == "lm" ? end - 1 : layers - 1;
  use.end_layer = layers;
  use.has_head = options.loss == "lm";
  use.parameters =
      (2 * (shape.num_attention_heads + shape.num_key_value_heads) * config.head_dim + 3 * shape.intermediate_size) *
      config.hidden_size;
  use.micro_tokens = setup.micro_tokens();
  use.trained_tokens = setup.trained_tokens();
  use.validated_tokens = setup.validated_tokens();
  use.recomputes = recomputes_of(options, config, compute, end, setup);
  use.streams = options.loss == "lm" ? 1 : 2;
  use.stream_item = options.stream_dtype == "bf16" ? 2 : 4;
  if (use.stream_item == 2) ++use.streams;  // beside the one that walks, in fp32
  use.walks = 1;
  return estimate_training(checkpoint, compute, amount_of(windows), use);
}

}  // namespace

void run(const StreamlineRequest& options, TerminalProgress& progress) {
  // Weights and streams that are inference tensors could not be trained through.
  const c10::InferenceMode trains(false);
  const c10::NoGradGuard no_gradients;
  check_options(options);
  if (is_trained(options)) check_training_dtype(options.common.dtype);
  run_method(options, progress, [&](const Checkpoint& checkpoint) {
    const int64_t layers = checkpoint.config().num_layers(), count = layers_to_go(options, layers);
    const auto start = named_start(options);
    if (start && count > 0 && (*start < first_start(options) || *start + count > layers)) {
      throw_error(ErrorKind::kUsage, "--window ", options.window, ": ", count,
                  " layers from there do not fit; it must be ", first_start(options), " to ", layers - count);
    }
    if (count > layers - first_start(options)) {
      throw_error(ErrorKind::kUsage, "--layers ", count, ": with --replace ", options.replace, " ",
                  first_start(options), " layer(s) must stay in front of those that go");
    }
    Method method{"streamline", "streamline-" + std::to_string(layers - count)};
    method.layers_left = layers - count;
    method.samples = is_trained(options) ? 128 : 32;
    method.at_most = is_trained(options);
    method.use = [&options, layers, count](const TokenWindows& windows) {
      return use_of_streamlining(options, layers, count, choosing_windows(options, windows));
    };
    if (is_trained(options) && count > 0) {
      check_whole_layers(checkpoint);
      method.training = [&options, &checkpoint, count](const ComputeOptions& compute, const TokenWindows& windows) {
        return estimate_replacement(options, checkpoint, compute, windows, count);
      };
    }
    method.search = [&options, count](const Search& in) { return Streamlining(options, in, count).run(); };
    return method;
  });
}

}  // namespace dynslice::cli
