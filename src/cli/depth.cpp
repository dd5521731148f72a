// The verbs below `depth`: what each of them searches for, in a frame that all of them share.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <iostream>
#include <numeric>

#include "cli/checkpoint_output.h"
#include "cli/journaling.h"
#include "cli/resources.h"
#include "cli/sizes.h"
#include "cli/verbs.h"
#include "dynslice/depth/drop.h"
#include "dynslice/depth/merge.h"
#include "dynslice/depth/repair.h"
#include "dynslice/depth/shallow_losses.h"
#include "dynslice/model/modeling_files.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/score/score.h"
#include "dynslice/support/error.h"
#include "dynslice/support/log.h"
#include "dynslice/text/tokenizer.h"

namespace dynslice::cli {
namespace {

using Rows = std::vector<std::vector<std::string>>;

// What a search has in its hands.
struct Search {
  const Checkpoint& checkpoint;
  const ComputeOptions& compute;
  const LoadedText* text;  // null when the verb needs none
  Journal& journal;
  ProgressSink& progress;

  int64_t layers() const { return checkpoint.config().num_layers(); }
  const TokenWindows& windows() const { return text->windows; }
  JournalPhase phase(const std::string& name) const { return {journal, name}; }
};

// What it found, for people and for programs.
struct Found {
  DepthPlan plan;
  OrderedJson json = OrderedJson::object();  // what the method adds
  std::vector<std::string> header;
  Rows rows;
  std::string summary;  // a line or more
};

// One verb: what it needs and how it searches.
struct Method {
  std::string name;                                    // "drop"
  std::string suffix;                                  // of the folder's name: "drop-22"
  int64_t layers_left = 0;                             // about, for the estimate
  int64_t samples = 0, seqlen = 0;                     // of the calibration text by default; samples 0: needs none
  std::function<DepthUse(const TokenWindows&)> use{};  // of the search
  std::function<Found(const Search&)> search{};
};

std::string join(const std::vector<int64_t>& numbers) {
  std::string text;
  for (const int64_t number : numbers) text += (text.empty() ? "" : ", ") + std::to_string(number);
  return text;
}

// "3-7" of ascending consecutive layers.
std::string span_of(int64_t first, int64_t last) {
  return first == last ? std::to_string(first) : std::to_string(first) + "-" + std::to_string(last);
}

double perplexity_of(double loss) { return std::exp(loss); }

int64_t share_of_layers(double ratio, int64_t layers) { return std::llround(ratio * static_cast<double>(layers)); }

// The number of layers that go, checked.
int64_t layers_to_go(const DepthOptions& options, int64_t layers) {
  if (!options.layers && !options.ratio)
    throw_error(ErrorKind::kUsage, "say how many layers go: --layers N, or --ratio 25%");
  const int64_t count = options.layers ? *options.layers : share_of_layers(*options.ratio, layers);
  if (count >= layers) {
    throw_error(ErrorKind::kUsage, "--layers ", count, ": the model has ", layers, " layers, and one must stay");
  }
  return count;
}

OrderedJson describe(const DepthPlan& plan) {
  OrderedJson json;
  json["layers"] = plan.layers;
  return json;
}

void report(const DepthOptions& options, const Found& found, OrderedJson json, const SizeChange& change,
            int64_t layers_before, const std::filesystem::path& out, double seconds) {
  if (options.common.json) {
    json["wall_seconds"] = seconds;
    json["peak_rss_bytes"] = peak_rss_bytes();
    json["output"] = out.string();
    std::cout << to_text(json);
    return;
  }
  if (!found.rows.empty()) {
    print_table(found.header, found.rows);
    std::cout << '\n';
  }
  const auto after = static_cast<int64_t>(found.plan.layers.size());
  print_sizes(change, {"layers", std::to_string(layers_before), std::to_string(after),
                       format_change(static_cast<double>(layers_before), static_cast<double>(after))});
  std::cout << '\n' << found.summary;
  print_size_notice(change);
  std::cout << format_duration(seconds) << ", peak memory " << format_bytes(peak_rss_bytes()) << ".\nWritten to "
            << out.string() << ". Next: dynslice eval " << out.string() << " --ppl wikitext2\n";
}

void search_and_write(const DepthOptions& options, const Method& method, const Search& in,
                      const std::filesystem::path& out, const std::shared_ptr<WorkFolder>& folder,
                      std::chrono::steady_clock::time_point start) {
  const Found found = method.search(in);
  const ModelConfig config = depth_config(in.checkpoint.config(), found.plan);
  const at::ScalarType dtype = output_dtype(options.out_dtype, in.checkpoint);
  const SizeChange change = size_change(in.checkpoint, config, dtype);
  CheckpointWriter writer(out, checkpoint_tensors(config, dtype), options.common.force, folder, in.journal.attached());
  write_depth(in.checkpoint, found.plan, dtype, writer, in.progress);
  write_tokenizer_files(in.checkpoint.path(), writer.folder());
  writer.write_text("config.json", to_text(write_config(config, torch_dtype_name(dtype))));
  for (const ModelingFile& file : modeling_files(config)) writer.write_text(file.name, std::string(file.content));
  OrderedJson json = describe_checkpoint("depth " + method.name, in.journal.job(), in.checkpoint, in.progress);
  json["plan"] = describe(found.plan);
  json.update(found.json);
  json["layers"] = {{"before", in.layers()}, {"after", found.plan.layers.size()}};
  if (in.text != nullptr) json["calibration"] = describe(*in.text, options.calibration);
  add_sizes(json, change);
  writer.write_text("dynslice.json", to_text(json));
  writer.commit([&] { in.journal.remove_files(); });
  const double seconds =
      in.journal.earlier_seconds() + std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report(options, found, json, change, in.layers(), out, seconds);
}

// The frame of every verb: `method_for` sees the opened model.
void run_method(DepthOptions options, TerminalProgress& progress,
                const std::function<Method(const Checkpoint& checkpoint)>& method_for) {
  const auto start = std::chrono::steady_clock::now();
  ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  const auto checkpoint = open_model(options.common, progress);
  check_depth(*checkpoint);
  const Method method = method_for(*checkpoint);
  const std::filesystem::path out = checkpoint_folder(options.output, options.common, *checkpoint, method.suffix);
  std::optional<LoadedText> text;
  if (method.samples > 0) {
    if (options.calibration.samples == 0) options.calibration.samples = method.samples;
    if (options.calibration.seqlen == 0 && method.seqlen > 0) options.calibration.seqlen = method.seqlen;
    text = load_windows(options.calibration, TextUse::kCalibration, options.common, *checkpoint, progress);
  }
  const double share = static_cast<double>(method.layers_left) / static_cast<double>(checkpoint->config().num_layers());
  const auto output_bytes =
      static_cast<uint64_t>(share * static_cast<double>(count_cost(checkpoint->config()).parameters)) *
      c10::elementSize(output_dtype(options.out_dtype, *checkpoint));
  const auto resources = prepare(options.common, *checkpoint, compute,
                                 {"depth " + method.name,
                                  [&](const ComputeOptions& with, int64_t) {
                                    if (!text) return estimate_conversion(*checkpoint, output_bytes);
                                    DepthUse use = method.use(text->windows);
                                    use.output_bytes = output_bytes;
                                    return estimate_depth(*checkpoint, with, amount_of(text->windows), use);
                                  },
                                  0, out});
  if (!resources) return;
  compute = resources->compute;

  const OrderedJson run_description = describe_run(options.common, compute, *checkpoint);
  const auto folder = std::make_shared<WorkFolder>(CheckpointWriter::partial_folder(out));
  if (options.common.resume && !Journal::is_in(folder->path())) {
    if (auto finished = finished_earlier(out, run_description)) {
      log(LogLevel::kInfo, out.string() + ": was finished by the run before; nothing is left to do");
      (*finished)["output"] = out.string();
      if (options.common.json) std::cout << to_text(*finished);
      return;
    }
  }
  check_output(out, options.common.force);
  Journal journal(folder,
                  fingerprint(options.common, compute, *checkpoint, text ? &*text : nullptr, options.calibration),
                  run_description, journal_options(options.common));
  const Search search{*checkpoint, compute, text ? &*text : nullptr, journal, progress};
  with_journal(journal, options.common, [&] { search_and_write(options, method, search, out, folder, start); });
}

// ---- drop

Found drop_named(const DropOptions& options, const Search& in) {
  std::vector<int64_t> dropped;
  for (const auto& [first, last] : options.indices) {
    if (last >= in.layers()) plan_without(in.layers(), {last});  // says that it does not exist
    for (int64_t layer = first; layer <= last; ++layer) dropped.push_back(layer);
  }
  Found found{plan_without(in.layers(), dropped), {}, {}, {}, "Dropped as named: layers " + join(dropped) + ".\n"};
  found.json["removed"] = dropped;
  return found;
}

Found drop_by_influence(const Search& in, int64_t count) {
  const LayerWalk walk(in.checkpoint, in.compute, in.windows().length, in.progress);
  dynslice::ScoreOptions score{parse_metric("bi"), false, in.phase("scoring")};
  const LayerScores scores = score_layers(walk, in.windows(), score);
  const std::vector<int64_t> dropped = least_important(scores, count);
  Found found{plan_without(in.layers(), dropped), {}, {"layer", "block influence", ""}, {}, {}};
  const double highest = std::max(1e-12, *std::max_element(scores.values.begin(), scores.values.end()));
  for (int64_t layer = 0; layer < in.layers(); ++layer) {
    const double value = scores.values[static_cast<size_t>(layer)];
    const bool goes = std::find(dropped.begin(), dropped.end(), layer) != dropped.end();
    found.rows.push_back({std::to_string(layer), format_fixed(value, 6), goes ? "dropped" : bar(value / highest, 30)});
  }
  found.summary = "Dropped: layers " + join(dropped) + ".\n";
  found.json["removed"] = dropped;
  found.json["scores"] = to_json(scores);
  return found;
}

Found drop_by_perplexity(const Search& in, int64_t count) {
  const LayerWalk walk(in.checkpoint, in.compute, in.windows().length, in.progress);
  const auto trials = drop_by_loss(walk, in.windows(), count, [&](const std::string& name) { return in.phase(name); });
  Found found{{}, {}, {"dropped", "layer", "perplexity"}, {}, {}};
  std::vector<int64_t> dropped;
  found.json["trials"] = OrderedJson::array();
  for (const DropTrial& trial : trials) {
    dropped.push_back(trial.layer);
    found.rows.push_back(
        {std::to_string(dropped.size()), std::to_string(trial.layer), format_fixed(perplexity_of(trial.loss), 3)});
    found.json["trials"].push_back({{"layer", trial.layer}, {"perplexity", perplexity_of(trial.loss)}});
  }
  std::sort(dropped.begin(), dropped.end());
  found.plan = plan_without(in.layers(), dropped);
  found.json["removed"] = dropped;
  found.summary = "Dropped: layers " + join(dropped) +
                  ", in the order of the table; perplexity is that of the "
                  "calibration text.\n";
  return found;
}

// ---- merge

Found merge(const MergeOptions& options, const Search& in) {
  const LayerWalk walk(in.checkpoint, in.compute, in.windows().length, in.progress);
  dynslice::MergeOptions merging;
  merging.rule = parse_merge_rule(options.rule);
  if (options.threshold) merging.threshold = *options.threshold;
  merging.target_layers = options.target_layers;
  if (options.ratio) merging.target_layers = in.layers() - share_of_layers(*options.ratio, in.layers());
  const MergeResult result =
      merge_by_sliding(walk, in.windows(), merging, [&](const std::string& name) { return in.phase(name); });

  Found found{result.plan, {}, {"layers as one", "cosine", ""}, {}, {}};
  found.json["merge_rule"] = options.rule;
  found.json["threshold"] = result.threshold;
  found.json["cosine"] = result.cosine;
  found.json["merged"] = OrderedJson::array();
  found.json["trials"] = OrderedJson::array();
  for (const MergeTrial& trial : result.trials) {
    const bool good = trial.cosine > result.threshold;
    found.rows.push_back({span_of(trial.low, trial.high), format_fixed(trial.cosine, 4), good ? "" : "too far"});
    found.json["trials"].push_back({{"low", trial.low}, {"high", trial.high}, {"cosine", trial.cosine}});
  }
  std::string groups;
  for (const std::vector<int64_t>& layers : result.plan.layers) {
    if (layers.size() < 2) continue;
    groups += (groups.empty() ? "" : ", ") + span_of(layers.front(), layers.back());
    found.json["merged"].push_back(layers);
  }
  found.json["layers_run"] = result.layers_run;
  found.json["layers_if_whole"] = result.layers_if_whole;
  found.summary = groups.empty()
                      ? "Nothing was merged: no two layers became one above the threshold.\n"
                      : "Merged (" + options.rule + "): layers " + groups + "; cosine " +
                            format_fixed(result.cosine, 4) + ", threshold " + format_fixed(result.threshold, 4) + ".\n";
  if (result.layers_run > 0) {
    found.summary +=
        "The search ran " + std::to_string(result.layers_run) + " layers, " +
        format_fixed(static_cast<double>(result.layers_if_whole) / static_cast<double>(result.layers_run), 1) +
        " times fewer than whole models would have.\n";
  }
  return found;
}

// ---- streamline

// The first layer that goes, when it is named.
std::optional<int64_t> named_start(const StreamlineOptions& options) {
  if (options.window == "search" || options.window == "cosine") return std::nullopt;
  int64_t start = 0;
  const char* last = options.window.data() + options.window.size();
  const auto [end, error] = std::from_chars(options.window.data(), last, start);
  if (error != std::errc() || end != last || start < 0) {
    throw_error(ErrorKind::kUsage, "--window ", options.window, ": is not one of search, cosine, or a layer's number");
  }
  return start;
}

// What is in front of the first layer cannot be repaired: there is no MLP whose output could be mapped.
int64_t first_start(const StreamlineOptions& options) { return options.replace == "none" ? 0 : 1; }

// Windows that fit the maps of a search, and those after them that measure the loss.
std::pair<int64_t, int64_t> search_windows(int64_t windows) {
  const int64_t held_out = std::max<int64_t>(1, windows / 4);
  return {windows - held_out, held_out};
}

class Streamlining {
 public:
  Streamlining(const StreamlineOptions& options, const Search& in, int64_t count)
      : options_(options), in_(in), count_(count), walk_(in.checkpoint, in.compute, in.windows().length, in.progress) {}

  Found run() {
    Found found;
    if (count_ == 0) {
      found.plan = plan_without(in_.layers(), {});
      found.summary = "Nothing was to go.\n";
      return found;
    }
    const int64_t start = choose(found);
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
    const LayerScores scores = score_layers(walk_, in_.windows(), score);
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
    const auto [fitting, held] = search_windows(in_.windows().count);
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
    } else {
      std::vector<Repair> repairs = fit(starts, in_.windows().part(0, fitting), "repairs of all windows");
      for (size_t i = 0; i < starts.size(); ++i)
        plans.push_back(plan_without_window(in_.layers(), starts[i], count_, std::move(repairs[i])));
    }
    const std::vector<double> losses = shallow_losses(walk_, in_.windows().part(fitting, held), plans, phase);
    phase.finish({{"losses", losses}});
    return losses;
  }

  const StreamlineOptions& options_;
  const Search& in_;
  const int64_t count_;
  LayerWalk walk_;
};

DepthUse use_of_streamlining(const StreamlineOptions& options, int64_t layers, int64_t count,
                             const TokenWindows& windows) {
  DepthUse use;
  const bool repairs = options.replace != "none";
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

}  // namespace

void run(const DropOptions& options, TerminalProgress& progress) {
  run_method(options, progress, [&](const Checkpoint& checkpoint) {
    const int64_t layers = checkpoint.config().num_layers();
    Method method{"drop", "drop"};
    if (!options.indices.empty()) {
      int64_t named = 0;
      for (const auto& [first, last] : options.indices) named += last - first + 1;
      method.layers_left = std::max<int64_t>(1, layers - named);
      method.suffix += "-" + std::to_string(method.layers_left);
      method.search = [&](const Search& in) { return drop_named(options, in); };
      return method;
    }
    const int64_t count = layers_to_go(options, layers);
    method.layers_left = layers - count;
    method.suffix += "-" + std::to_string(method.layers_left);
    const bool by_influence = options.order == "bi";
    method.samples = by_influence ? 32 : 8;
    method.use = [by_influence, layers, count](const TokenWindows&) {
      DepthUse use;
      if (by_influence) return use;
      use.streams = layers + 1;
      use.losses = layers * count;
      use.walks = static_cast<double>(count) * static_cast<double>(layers) / 2;
      return use;
    };
    method.search = [by_influence, count](const Search& in) {
      return by_influence ? drop_by_influence(in, count) : drop_by_perplexity(in, count);
    };
    return method;
  });
}

void run(const MergeOptions& options, TerminalProgress& progress) {
  run_method(options, progress, [&](const Checkpoint& checkpoint) {
    const int64_t layers = checkpoint.config().num_layers();
    Method method{"merge", "merged"};
    method.layers_left = options.target_layers ? *options.target_layers
                         : options.ratio       ? layers - share_of_layers(*options.ratio, layers)
                                               : layers;
    if (method.layers_left < layers) method.suffix = "merge-" + std::to_string(method.layers_left);
    method.samples = 10;
    method.seqlen = std::min<int64_t>(128, checkpoint.config().max_position_embeddings);
    method.use = [layers](const TokenWindows&) {
      DepthUse use;
      use.streams = layers + 2;
      use.merged_layers = 2;
      use.walks = static_cast<double>(layers) / 2;
      return use;
    };
    method.search = [&](const Search& in) { return merge(options, in); };
    return method;
  });
}

void run(const StreamlineOptions& options, TerminalProgress& progress) {
  run_method(options, progress, [&](const Checkpoint& checkpoint) {
    const int64_t layers = checkpoint.config().num_layers(), count = layers_to_go(options, layers);
    const auto start = named_start(options);
    if (start && count > 0 && (*start < first_start(options) || *start + count > layers)) {
      throw_error(ErrorKind::kUsage, "--window ", options.window, ": ", count,
                  " layers from there do not fit; it must be ", first_start(options), " to ", layers - count);
    }
    if (count > layers - first_start(options)) {
      throw_error(ErrorKind::kUsage, "--layers ", count, ": with --replace ", options.replace,
                  " one layer must stay in front of those that go");
    }
    Method method{"streamline", "streamline-" + std::to_string(layers - count)};
    method.layers_left = layers - count;
    method.samples = 32;
    method.use = [&options, layers, count](const TokenWindows& windows) {
      return use_of_streamlining(options, layers, count, windows);
    };
    method.search = [&options, count](const Search& in) { return Streamlining(options, in, count).run(); };
    return method;
  });
}

}  // namespace dynslice::cli
