#include "cli/parse.h"

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <iostream>
#include <set>

#include "cli/reference.h"
#include "dynslice/support/error.h"

namespace dynslice::cli {
namespace {

constexpr const char* kFooter =
    "Run `dynslice VERB --help` for a verb's options.\n"
    "Exit codes: 0 done, 1 a defect of dynslice, 2 wrong usage, 3 bad input file, 4 missing data or network,\n"
    "5 out of memory or disk, 130 interrupted.\n";

// Type names (see reference.h) that several options have.
constexpr const char* kTextType = "wikitext2|wikitext2:test|wikitext2:validation|wikitext2:train|FILE";
constexpr const char* kRatioType = "RATIO";

// "25%" or "0.25" → 0.25; only what is in [0, 1).
double parse_ratio(const std::string& option, const std::string& text) {
  double value = NAN;
  const bool percent = text.ends_with('%');
  const char* last = text.data() + text.size() - (percent ? 1 : 0);
  const auto [end, error] = std::from_chars(text.data(), last, value);
  if (text.empty() || error != std::errc() || end != last || !std::isfinite(value)) {
    throw_error(ErrorKind::kUsage, option, " \"", text, "\": must be a ratio such as 25% or 0.25");
  }
  if (percent) value /= 100;
  if (value < 0 || value >= 1) {
    throw_error(ErrorKind::kUsage, option, " ", text, ": must be at least 0% and below 100%",
                !percent && value >= 1 && value < 100 ? "; did you mean " + text + "%?" : "");
  }
  return value;
}

// "params=25%".
SizeTarget parse_target(const std::string& text) {
  const size_t equals = text.find('=');
  const std::string quantity = text.substr(0, equals);
  if (equals == std::string::npos || (quantity != "params" && quantity != "bytes" && quantity != "flops")) {
    throw_error(ErrorKind::kUsage, "--target \"", text, "\": must be params=R, bytes=R or flops=R, with R such as 25%");
  }
  return {quantity, parse_ratio("--target " + quantity, text.substr(equals + 1))};
}

int64_t parse_integer(const std::string& option, const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size() || value < 0) {
    throw_error(ErrorKind::kUsage, option, " \"", text, "\": must be a whole number, 0 or more");
  }
  return value;
}

// "A:B", "A:" or ":B".
RangeOption parse_range(const std::string& option, const std::string& text) {
  const size_t colon = text.find(':');
  if (colon == std::string::npos)
    throw_error(ErrorKind::kUsage, option, " \"", text, "\": must be A:B, two token positions");
  RangeOption range;
  if (colon > 0) range.begin = parse_integer(option, text.substr(0, colon));
  if (colon + 1 < text.size()) range.end = parse_integer(option, text.substr(colon + 1));
  if (range.end && *range.end <= range.begin) throw_error(ErrorKind::kUsage, option, " ", text, ": is empty");
  return range;
}

void add_common(CLI::App& verb, CommonOptions& options, bool computes) {
  verb.add_option("MODEL", options.model, "a checkpoint folder, a .gguf file or a hub id (org/name[@revision])")
      ->type_name("MODEL")
      ->default_str("$DYNSLICE_MODEL, else SmolLM2-135M-Instruct");
  if (computes) {
    verb.add_option("--device", options.device, "where to compute; auto is CUDA where LibTorch sees it, else the CPU")
        ->type_name("auto|cpu|cuda|cuda:N")
        ->default_str("auto");
    verb.add_option(
            "--dtype", options.dtype,
            "number format of linear layers and attention (fp16: CUDA only); auto is fp32 on the CPU and bf16 on "
            "CUDA. The residual stream stays fp32, statistics fp64")
        ->type_name("auto|fp32|bf16|fp16")
        ->default_str("auto");
    verb.add_option("--threads", options.threads, "CPU threads")->check(CLI::Range(1, 4096))->default_str("all cores");
    verb.add_option("--data-dir", options.data_dir,
                    "folder in which data sets are looked for first; then $DYNSLICE_DATA_DIR, the cache and the hub")
        ->type_name("FOLDER");
  }
  verb.add_flag("--json", options.json, "print one JSON object on standard output, everything else on standard error");
  verb.add_flag("-q,--quiet", options.quiet, "print no progress and no notices");
  verb.add_flag("-v,--verbose", options.verbose, "print more notices");
}

void add_dry_run(CLI::App& verb, CommonOptions& options) {
  verb.add_flag("--dry-run", options.dry_run, "print the memory, disk and time it would take, and do nothing else");
}

// Options of the commands that walk over the layers of a model of any size.
void add_walk(CLI::App& verb, CommonOptions& options, const std::string& replaces = "") {
  verb.add_option("--max-memory", options.max_memory,
                  "most memory to take, such as 6GB: chunks and streams are made to fit, or the run is refused at once")
      ->type_name("SIZE")
      ->default_str("what the machine, or its container, has left");
  verb.add_option("--activation-memory", options.activation_memory,
                  "most memory for residual streams; the rest lives in a scratch file")
      ->type_name("SIZE")
      ->default_str("what fits");
  verb.add_option("--scratch-dir", options.scratch_dir, "folder of the scratch file")
      ->type_name("FOLDER")
      ->default_str("$TMPDIR, else /var/tmp");
  add_dry_run(verb, options);
  verb.add_flag("--resume", options.resume, "go on from where a run of the same command was stopped");
  verb.add_flag("--force", options.force, replaces + "drop what a stopped run left, and start over");
}

// Options of the text that `prefix` ("calib" or "ppl") names.
void add_text(CLI::App& verb, TextOptions& options, const std::string& prefix, const std::string& use,
              const std::string& split, const std::string& samples_default, const std::string& seqlen_default) {
  verb.add_option(
          "--" + prefix, options.spec,
          use +
              " text: wikitext2[:test|:validation|:train], or a .txt, .raw or .jsonl file (the \"text\" of each "
              "line); wikitext2 alone is its " +
              split)
      ->type_name(kTextType)
      ->option_text("TEXT")
      ->capture_default_str();
  const std::string range = "--" + prefix + "-range";
  verb.add_option_function<std::string>(
          range, [&options, range](const std::string& text) { options.range = parse_range(range, text); },
          "use only tokens A to B-1 of the text; either end may be left out")
      ->type_name("A:B")
      ->default_str("all");
  verb.add_option("--samples", options.samples, "number of windows that the text gives")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->default_str(samples_default);
  verb.add_option("--seqlen", options.seqlen, "tokens a window")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->default_str(seqlen_default);
  verb.add_option_function<std::string>(
          "--shuffle",
          [&options](const std::string& text) {
            options.shuffle = static_cast<uint64_t>(parse_integer("--shuffle", text));
          },
          "take windows in a random order that this seed gives, instead of the first ones")
      ->type_name("SEED");
}

void add_calibration(CLI::App& verb, TextOptions& options) {
  options.samples = 32;
  add_text(verb, options, "calib", "calibration", "training split, else validation where training is not at hand", "32",
           "1024, or the model's maximum if less");
}

void add_planning(CLI::App& verb, PlanningOptions& options) {
  verb.add_option("--method", options.method, "how width is removed; slice: rotation by PCA, then slicing")
      ->check(CLI::IsMember({"slice"}))
      ->capture_default_str();
  const auto ratio = [&verb](const std::string& name, std::optional<double>& target, const std::string& help) {
    return verb
        .add_option_function<std::string>(
            name, [name, &target](const std::string& text) { target = parse_ratio(name, text); }, help)
        ->type_name(kRatioType);
  };
  CLI::Option* average = ratio(
      "--avg", options.average,
      "average share of the width to slice away, 25% or 0.25 (this or --target is required, unless a plan file is "
      "given)");
  verb.add_option_function<std::string>(
          "--target", [&options](const std::string& text) { options.target = parse_target(text); },
          "share of the model that is to go, params=25%, bytes=25% or flops=25%; the average is solved for. bytes are "
          "those on disk, of a quantized source at the output's precision")
      ->type_name("params=RATIO|bytes=RATIO|flops=RATIO")
      ->excludes(average);
  verb.add_option("--allocate", options.allocator,
                  "how the average is shared out; lr: more where layers are redundant, constant: the same everywhere")
      ->check(CLI::IsMember({"lr", "constant"}))
      ->capture_default_str();
  verb.add_option_function<std::string>(
          "--base",
          [&options](const std::string& text) {
            options.base_auto = text == "auto";
            if (!options.base_auto) options.base = parse_ratio("--base", text);
          },
          "what every layer loses at least with --allocate lr; auto tries the average, then 2 points less each time "
          "down "
          "to 0, on held-out calibration text, takes the best and reports every point")
      ->type_name("auto|RATIO")
      ->default_str("60% of the average");
  verb.add_option("--sweep-samples", options.sweep_samples,
                  "calibration windows of a trial of --base auto; half as many after them measure the loss")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 40))
      ->capture_default_str();
  ratio("--max-ratio", options.max_ratio, "no layer loses more than this; the excess goes to the others in proportion")
      ->default_str("80%");
  verb.add_option_function<std::string>(
          "--round-to",
          [&options](const std::string& text) {
            options.round_to = parse_integer("--round-to", text);
            if (*options.round_to < 1) throw_error(ErrorKind::kUsage, "--round-to ", text, ": must be at least 1");
          },
          "make widths multiples of this")
      ->type_name("N")
      ->default_str("8");
  verb.add_flag("--slice-head", options.slice_head, "slice the stream that enters the output matrix too");
  verb.add_option("--scores", options.scores,
                  "take lr or bi scores from this file of `dynslice score -o` instead of scoring now")
      ->type_name("FILE");
  verb.add_option("--preset", options.preset,
                  "a published setting; paper: DynamicSlicing's own dimensions (last layer scored after the final "
                  "norm, no cap, --round-to 1)")
      ->check(CLI::IsMember({"paper"}));
  verb.add_option("--out-dtype", options.out_dtype, "number format of the written weights")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->default_str("the source's; bf16 for quantized sources");
  add_calibration(verb, options.calibration);
}

// "20-25,3" → the ranges 20 to 25 and 3 to 3.
std::vector<std::pair<int64_t, int64_t>> parse_indices(const std::string& option, const std::string& text) {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (const std::string& part : CLI::detail::split(text, ',')) {
    const size_t dash = part.find('-');
    const int64_t first = parse_integer(option, part.substr(0, dash));
    const int64_t last = dash == std::string::npos ? first : parse_integer(option, part.substr(dash + 1));
    if (last < first) throw_error(ErrorKind::kUsage, option, " \"", text, "\": ", part, " runs backwards");
    ranges.emplace_back(first, last);
  }
  return ranges;
}

struct Definitions {
  ScoreOptions score;
  PlanOptions plan;
  SliceOptions slice;
  EvalOptions eval;
  BenchOptions bench;
  InspectOptions inspect;
  ExportOptions export_;
  DropOptions drop;
  MergeOptions merge;
  StreamlineOptions streamline;
};

void define_score(CLI::App& app, ScoreOptions& options) {
  CLI::App* verb = app.add_subcommand("score", "Which layers are redundant: one score per layer");
  add_common(*verb, options.common, true);
  add_walk(*verb, options.common);
  verb->add_option("--metric", options.metric,
                   "what to measure; lr: mean cosine of a layer's input and output (low is important), bi: 1 - lr, "
                   "angular: arccos(cosine) / pi, cka: linear CKA of input and output, and of all pairs of layers, "
                   "window:N: cosine across N layers, for every start")
      ->type_name("lr|bi|angular|cka|window:N")
      ->capture_default_str();
  verb->add_option("--preset", options.preset,
                   "a published setting; paper: read the last layer's output after the final norm, as DynamicSlicing's "
                   "script does")
      ->check(CLI::IsMember({"paper"}));
  verb->add_option("-o,--output", options.output, "also write the scores to this JSON file, for --scores")
      ->type_name("FILE");
  verb->add_option("--matrix", options.matrix,
                   "with --metric cka: also write the picture of all pairs of layers to this SVG file")
      ->type_name("FILE");
  add_calibration(*verb, options.calibration);
}

void define_plan(CLI::App& app, PlanOptions& options) {
  CLI::App* verb = app.add_subcommand("plan", "How much to slice where, and what it would cost, without slicing");
  add_common(*verb, options.common, true);
  add_walk(*verb, options.common);
  add_planning(*verb, options);
  verb->add_option("-o,--output", options.output, "write the plan to this JSON file, for `dynslice slice --plan`")
      ->type_name("FILE");
}

void define_slice(CLI::App& app, SliceOptions& options) {
  CLI::App* verb = app.add_subcommand("slice", "Remove a share of the model's width, more where it hurts less");
  add_common(*verb, options.common, true);
  add_walk(*verb, options.common, "replace the output folder if dynslice wrote it; without --resume, ");
  add_planning(*verb, options);
  CLI::Option* plan =
      verb->add_option("--plan", options.plan,
                       "slice by this plan file; the calibration text is still needed, for the rotation")
          ->type_name("FILE");
  for (const char* replaced : {"--avg", "--target", "--allocate", "--base", "--max-ratio", "--round-to", "--slice-head",
                               "--scores", "--preset"}) {
    plan->excludes(verb->get_option(replaced));
  }
  verb->add_option("-o,--output", options.output, "folder of the sliced checkpoint")
      ->type_name("FOLDER")
      ->default_str("./NAME-sliced-RATIO");
}

void define_eval(CLI::App& app, EvalOptions& options) {
  CLI::App* verb = app.add_subcommand("eval", "What it cost: perplexity of a dense or sliced model");
  add_common(*verb, options.common, true);
  add_walk(*verb, options.common);
  verb->add_option("--protocol", options.protocol,
                   "which tokens of a window are scored; full: all but the first, as papers do, llamacpp: the second "
                   "half, with BOS in front where the tokenizer adds it, as llama-perplexity does")
      ->type_name("full|llamacpp")
      ->capture_default_str();
  add_text(*verb, options.text, "ppl", "evaluation", "test split", "all", "2048, or the model's maximum if less");
}

void define_bench(CLI::App& app, BenchOptions& options) {
  CLI::App* verb = app.add_subcommand("bench", "How fast it is: tokens/s of reading a prompt and of writing tokens");
  add_common(*verb, options.common, true);
  const auto count = [verb](const std::string& name, int64_t& target, int64_t least, const std::string& help) {
    verb->add_option(name, target, help)->check(CLI::Range(least, int64_t{1} << 30))->capture_default_str();
  };
  verb->add_option("--against", options.against,
                   "a second model, usually the dense one: measured in turns with the first, and the ratio printed")
      ->type_name("MODEL");
  count("--prompt-tokens", options.prompt_tokens, 1, "tokens of every prompt");
  count("--decode-tokens", options.decode_tokens, 0, "tokens written after the prompt, one at a time");
  count("--repeats", options.repeats, 1, "times that count, after one that warms up");
  count("--batch", options.batch, 1, "sequences side by side");
  add_dry_run(*verb, options.common);
  verb->add_flag("--gemm", options.gemm, "no model: the most that this machine reaches in matrix products");
}

void define_inspect(CLI::App& app, InspectOptions& options) {
  CLI::App* verb = app.add_subcommand("inspect", "Architecture, shapes, parameters and bytes of a checkpoint");
  add_common(*verb, options.common, false);
}

void define_export(CLI::App& app, ExportOptions& options) {
  CLI::App* verb = app.add_subcommand("export", "A GGUF file that llama.cpp runs, of a model with ordinary shapes");
  add_common(*verb, options.common, false);
  verb->add_flag("--gguf", options.gguf, "the format, GGUF: the only one so far")->required();
  verb->add_option("--type", options.type, "of the matrices")
      ->check(CLI::IsMember({"f32", "f16", "bf16", "q8_0"}))
      ->default_str("the source's; bf16 for quantized ones");
  verb->add_option("-o,--output", options.output, "the file to write")
      ->type_name("FILE")
      ->default_str("./NAME-TYPE.gguf");
  add_dry_run(*verb, options.common);
  verb->add_flag("--force", options.common.force, "replace the output file if it is a GGUF file");
}

// The verbs below `depth`.
void add_depth(CLI::App& verb, DepthOptions& options, const std::string& samples, const std::string& seqlen) {
  add_common(verb, options.common, true);
  add_walk(verb, options.common, "replace the output folder if dynslice wrote it; without --resume, ");
  verb.add_option("--out-dtype", options.out_dtype, "number format of the written weights")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->default_str("the source's; bf16 for quantized sources");
  verb.add_option("-o,--output", options.output, "folder of the written checkpoint")
      ->type_name("FOLDER")
      ->default_str("./NAME-" + verb.get_name() + "-LAYERS");
  add_text(verb, options.calibration, "calib", "calibration",
           "training split, else validation where training is not at hand", samples, seqlen);
}

// How many layers go, by number or by share.
void add_layers(CLI::App& verb, DepthOptions& options) {
  CLI::Option* number =
      verb.add_option_function<int64_t>(
              "--layers", [&options](int64_t layers) { options.layers = layers; }, "number of layers that go")
          ->check(CLI::Range(int64_t{0}, int64_t{1} << 20))
          ->type_name("N");
  verb.add_option_function<std::string>(
          "--ratio", [&options](const std::string& text) { options.ratio = parse_ratio("--ratio", text); },
          "share of the layers that goes, to the nearest whole number of them")
      ->type_name(kRatioType)
      ->excludes(number);
}

void define_drop(CLI::App& depth, DropOptions& options) {
  CLI::App* verb = depth.add_subcommand("drop", "Remove the layers that change the stream least, or named ones");
  add_layers(*verb, options);
  verb->add_option("--order", options.order,
                   "which go first; bi: those of the lowest block influence (ShortGPT), ppl: one at a time the one "
                   "without which perplexity on the calibration text is lowest, all measured again each time (SLEB)")
      ->check(CLI::IsMember({"bi", "ppl"}))
      ->capture_default_str();
  verb->add_option_function<std::string>(
          "--indices", [&options](const std::string& text) { options.indices = parse_indices("--indices", text); },
          "these layers, numbered from 0, such as 20-25 or 3,7,20-25; needs no calibration text")
      ->type_name("A-B,...")
      ->excludes(verb->get_option("--layers"))
      ->excludes(verb->get_option("--ratio"))
      ->excludes(verb->get_option("--order"));
  add_depth(*verb, options, "32; 8 with --order ppl", "1024, or the model's maximum if less");
}

void define_merge(CLI::App& depth, MergeOptions& options) {
  CLI::App* verb = depth.add_subcommand(
      "merge", "Make consecutive layers one, as many as can be while the final hidden states stay alike (SLM)");
  CLI::Option* threshold = verb->add_option_function<double>(
                                   "--threshold", [&options](double value) { options.threshold = value; },
                                   "a range of layers grows while the cosine of the final hidden states is above this")
                               ->check(CLI::Range(-1.0, 1.0))
                               ->type_name("X")
                               ->default_str("0.72");
  CLI::Option* target = verb->add_option_function<int64_t>(
                                "--target-layers", [&options](int64_t layers) { options.target_layers = layers; },
                                "number of layers that are left: the highest threshold that gets there is found")
                            ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
                            ->type_name("N")
                            ->excludes(threshold);
  verb->add_option_function<std::string>(
          "--ratio", [&options](const std::string& text) { options.ratio = parse_ratio("--ratio", text); },
          "share of the layers that goes, in the place of --target-layers")
      ->type_name(kRatioType)
      ->excludes(threshold)
      ->excludes(target);
  verb->add_option("--merge-rule", options.rule,
                   "what a merged layer is; sum: the lowest plus all differences from it, as in the paper, mean: the "
                   "mean of all, last: the highest alone, which is what the authors' code comes to")
      ->check(CLI::IsMember({"sum", "mean", "last"}))
      ->capture_default_str();
  add_depth(*verb, options, "10", "128");
}

void define_streamline(CLI::App& depth, StreamlineOptions& options) {
  CLI::App* verb = depth.add_subcommand(
      "streamline", "Remove consecutive layers and let a linear map make up for them (LLM-Streamline, ReplaceMe)");
  add_layers(*verb, options);
  verb->add_option("--replace", options.replace,
                   "what stands for the layers that went; none: nothing, linear: a least-squares map of what the MLP "
                   "before them adds, folded into its weights, so that the model stays an ordinary one, linear-stream: "
                   "a map of the whole stream, which is better and takes a matrix that needs dynslice's modeling code")
      ->check(CLI::IsMember({"none", "linear", "linear-stream"}))
      ->capture_default_str();
  verb->add_option("--window", options.window,
                   "which layers go; search: every window is repaired and tried on held-out calibration text, the "
                   "lowest loss wins, cosine: where the streams before and after are most alike (LLM-Streamline), N: "
                   "from layer N on")
      ->type_name("search|cosine|N")
      ->capture_default_str();
  verb->add_option("--ridge", options.ridge,
                   "pull of the map towards the identity, in units of the mean variance of what it maps")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  add_depth(*verb, options, "32", "1024, or the model's maximum if less");
}

void define_depth(CLI::App& app, Definitions& definitions) {
  CLI::App* depth = app.add_subcommand("depth", "Fewer layers: drop, merge or streamline them");
  depth->require_subcommand(1);
  define_drop(*depth, definitions.drop);
  define_merge(*depth, definitions.merge);
  define_streamline(*depth, definitions.streamline);
}

// The options that decide the result: all but those that say how to show it, where to put it, and whether to resume.
std::vector<std::pair<std::string, std::string>> given_options(const CLI::App& verb) {
  static const std::set<std::string> kNeutral = {"MODEL",         "--dry-run", "--max-memory", "--activation-memory",
                                                 "--scratch-dir", "--resume",  "--force",      "--json",
                                                 "--quiet",       "--verbose", "--output",     "--matrix",
                                                 "--data-dir",    "--threads"};
  std::vector<std::pair<std::string, std::string>> given;
  for (const CLI::Option* option : verb.get_options()) {
    if (option->count() == 0 || kNeutral.contains(option->get_name())) continue;
    std::string value;
    for (const std::string& part : option->results()) value += (value.empty() ? "" : " ") + part;
    given.emplace_back(option->get_name(), value);
  }
  return given;
}

// Fills in what was typed, and gives the options of the verb.
template <typename Options>
Command command_of(Options& options, const CLI::App& verb, const std::string& name,
                   const std::vector<std::string>& command_line) {
  options.common.command_line = command_line;
  options.common.verb = name;
  options.common.given = given_options(verb);
  return options;
}

Command chosen(const CLI::App& app, Definitions& definitions, const std::vector<std::string>& command_line) {
  const CLI::App* verb = app.get_subcommands().front();
  std::string name = verb->get_name();
  if (!verb->get_subcommands().empty()) {
    verb = verb->get_subcommands().front();
    name += " " + verb->get_name();
  }
  const auto command = [&](auto& options) { return command_of(options, *verb, name, command_line); };
  if (name == "score") return command(definitions.score);
  if (name == "plan") return command(definitions.plan);
  if (name == "slice") return command(definitions.slice);
  if (name == "eval") return command(definitions.eval);
  if (name == "export") return command(definitions.export_);
  if (name == "bench") return command(definitions.bench);
  if (name == "depth drop") return command(definitions.drop);
  if (name == "depth merge") return command(definitions.merge);
  if (name == "depth streamline") return command(definitions.streamline);
  return command(definitions.inspect);
}

// CLI11's messages may have several lines; ours have one.
std::string one_line(std::string text) {
  for (char& c : text) {
    if (c == '\n') c = ' ';
  }
  return text;
}

}  // namespace

std::variant<Command, int> parse_command_line(int argc, char** argv) {
  CLI::App app("dynslice makes large language models smaller: score layers, slice them, measure what it cost.",
               "dynslice");
  app.set_help_flag("-h,--help", "print this help and exit");
  app.set_version_flag("--version", "dynslice " DYNSLICE_VERSION, "print the version and exit");
  app.require_subcommand(1);
  app.footer(kFooter);
  Definitions definitions;
  define_score(app, definitions.score);
  define_plan(app, definitions.plan);
  define_slice(app, definitions.slice);
  define_depth(app, definitions);
  define_eval(app, definitions.eval);
  define_bench(app, definitions.bench);
  define_inspect(app, definitions.inspect);
  define_export(app, definitions.export_);
  ReferenceOptions reference;
  define_reference(app, reference);
  set_help_format(app);
  try {
    app.parse(argc, argv);
    if (const auto text = reference_text(app, reference)) {
      std::cout << *text << std::flush;
      return std::cout ? 0 : static_cast<int>(ErrorKind::kOutOfResources);
    }
    return chosen(app, definitions, std::vector<std::string>(argv, argv + argc));
  } catch (const CLI::Success& done) {
    return app.exit(done);
  } catch (const CLI::ParseError& error) {
    std::cerr << "dynslice: " << one_line(error.what()) << " (see --help)\n";
  } catch (const Error& error) {
    std::cerr << "dynslice: " << one_line(error.what()) << '\n';
  }
  return static_cast<int>(ErrorKind::kUsage);
}

}  // namespace dynslice::cli
