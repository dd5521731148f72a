#include "cli/parse.h"

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <iostream>

#include "dynslice/support/error.h"

namespace dynslice::cli {
namespace {

constexpr const char* kExitCodes =
    "Exit codes: 0 done, 1 a defect of dynslice, 2 wrong usage, 3 bad input file, 4 missing data or network,\n"
    "5 out of memory or disk, 130 interrupted.\n";

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
  verb.add_option("MODEL", options.model,
                  "a checkpoint folder, a .gguf file or a hub id (org/name[@revision]); without it $DYNSLICE_MODEL, "
                  "else SmolLM2-135M-Instruct");
  if (computes) {
    verb.add_option("--device", options.device, "auto, cpu, cuda or cuda:N (auto: CUDA where there is one)");
    verb.add_option("--dtype", options.dtype,
                    "of the forward: auto, fp32, bf16, fp16 (auto: fp32 on the CPU, bf16 on CUDA)");
    verb.add_option("--threads", options.threads, "CPU threads (default: all cores)")->check(CLI::Range(1, 4096));
    verb.add_option("--max-memory", options.max_memory,
                    "most memory to take, such as 6GB: chunks and streams are made to fit, or the run is refused at "
                    "once (default: what the machine, or its container, has left)");
    verb.add_option("--activation-memory", options.activation_memory,
                    "most memory for residual streams; the rest lives in a scratch file (default: what fits)");
    verb.add_option("--scratch-dir", options.scratch_dir,
                    "folder of the scratch file (default: $TMPDIR, else /var/tmp)");
    verb.add_flag("--dry-run", options.dry_run, "print the memory, disk and time it would take, and do nothing else");
    verb.add_option("--data-dir", options.data_dir,
                    "where data sets are looked for first (then $DYNSLICE_DATA_DIR, the cache, the hub)");
  }
  verb.add_flag("--json", options.json, "one JSON object on stdout, everything else on stderr");
  verb.add_flag("-q,--quiet", options.quiet, "no progress and no notices");
  verb.add_flag("-v,--verbose", options.verbose, "more notices");
}

// Options of the text that `prefix` ("calib" or "ppl") names.
void add_text(CLI::App& verb, TextOptions& options, const std::string& prefix, const std::string& use,
              const std::string& samples, const std::string& seqlen) {
  verb.add_option("--" + prefix, options.spec,
                  use + ": wikitext2[:test|:validation|:train] or a .txt, .raw or .jsonl file")
      ->capture_default_str();
  const std::string range = "--" + prefix + "-range";
  verb.add_option_function<std::string>(
      range, [&options, range](const std::string& text) { options.range = parse_range(range, text); },
      "use only tokens A:B of the token stream");
  verb.add_option("--samples", options.samples, samples)->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  verb.add_option("--seqlen", options.seqlen, seqlen)->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  verb.add_option_function<std::string>(
      "--shuffle",
      [&options](const std::string& text) {
        options.shuffle = static_cast<uint64_t>(parse_integer("--shuffle", text));
      },
      "seed: take windows in random order instead of the first ones");
}

void add_calibration(CLI::App& verb, TextOptions& options) {
  options.samples = 32;
  add_text(verb, options, "calib", "calibration text; wikitext2 alone is its training split, else validation",
           "calibration windows (default 32)", "tokens a window (default 1024, or the model's maximum if less)");
}

void add_planning(CLI::App& verb, PlanningOptions& options) {
  verb.add_option("--method", options.method, "slice: rotate by PCA and slice (the only one so far)")
      ->check(CLI::IsMember({"slice"}));
  const auto ratio = [&verb](const std::string& name, std::optional<double>& target, const std::string& help) {
    verb.add_option_function<std::string>(
        name, [name, &target](const std::string& text) { target = parse_ratio(name, text); }, help);
  };
  ratio("--avg", options.average, "average ratio to slice: 25% or 0.25");
  verb.add_option("--allocate", options.allocator,
                  "lr: more where layers are redundant (default); constant: the same everywhere")
      ->check(CLI::IsMember({"lr", "constant"}));
  verb.add_option_function<std::string>(
      "--base",
      [&options](const std::string& text) {
        options.base_auto = text == "auto";
        if (!options.base_auto) options.base = parse_ratio("--base", text);
      },
      "slicing base of lr, what every layer loses at least: a ratio, or auto, which tries bases 2 points apart on "
      "held-out calibration text and takes the best (default: 60% of the average)");
  verb.add_option("--sweep-samples", options.sweep_samples,
                  "calibration windows of every trial of --base auto (default 8)")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 40));
  ratio("--max-ratio", options.max_ratio, "no layer loses more (default 80%); the excess goes to the others");
  verb.add_option_function<std::string>(
      "--round-to",
      [&options](const std::string& text) {
        options.round_to = parse_integer("--round-to", text);
        if (*options.round_to < 1) throw_error(ErrorKind::kUsage, "--round-to ", text, ": must be at least 1");
      },
      "widths become multiples of this (default 8)");
  verb.add_flag("--slice-head", options.slice_head, "slice the stream that enters the output matrix too");
  verb.add_option("--scores", options.scores, "lr or bi scores from `dynslice score -o FILE` instead of scoring now");
  verb.add_option(
          "--preset", options.preset,
          "paper: as DynamicSlicing's code does it (last layer scored after the final norm, no cap, --round-to 1)")
      ->check(CLI::IsMember({"paper"}));
  verb.add_option("--out-dtype", options.out_dtype,
                  "of the written weights: fp32, bf16 or fp16 (default: the source's; bf16 for quantized ones)")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}));
  add_calibration(verb, options.calibration);
}

struct Definitions {
  ScoreOptions score;
  PlanOptions plan;
  SliceOptions slice;
  EvalOptions eval;
  InspectOptions inspect;
};

void define_score(CLI::App& app, ScoreOptions& options) {
  CLI::App* verb = app.add_subcommand("score", "Which layers are redundant: one score per layer");
  add_common(*verb, options.common, true);
  verb->add_option("--metric", options.metric,
                   "lr: mean cosine of a layer's input and output (default); bi: 1 - lr; angular: arccos(cos)/pi; "
                   "window:N: cosine across N layers, for every start");
  verb->add_option("--preset", options.preset,
                   "paper: read the last layer's output after the final norm, as DynamicSlicing's script does")
      ->check(CLI::IsMember({"paper"}));
  verb->add_option("-o,--output", options.output, "also write the scores to this JSON file");
  add_calibration(*verb, options.calibration);
}

void define_plan(CLI::App& app, PlanOptions& options) {
  CLI::App* verb = app.add_subcommand("plan", "How much to slice where, and what it would cost, without slicing");
  add_common(*verb, options.common, true);
  add_planning(*verb, options);
  verb->add_option("-o,--output", options.output, "write the plan to this JSON file, for `dynslice slice --plan`");
}

void define_slice(CLI::App& app, SliceOptions& options) {
  CLI::App* verb = app.add_subcommand("slice", "Remove a share of the model's width, more where it hurts less");
  add_common(*verb, options.common, true);
  add_planning(*verb, options);
  CLI::Option* plan =
      verb->add_option("--plan", options.plan, "slice by this plan file instead of --avg and --allocate");
  for (const char* replaced :
       {"--avg", "--allocate", "--base", "--max-ratio", "--round-to", "--slice-head", "--scores", "--preset"}) {
    plan->excludes(verb->get_option(replaced));
  }
  verb->add_option("-o,--output", options.output, "folder of the sliced checkpoint (default: ./NAME-sliced-RATIO)");
  verb->add_flag("--force", options.force, "replace the output folder if it holds a checkpoint that dynslice wrote");
}

void define_eval(CLI::App& app, EvalOptions& options) {
  CLI::App* verb = app.add_subcommand("eval", "What did it cost: perplexity of a dense or sliced model");
  add_common(*verb, options.common, true);
  verb->add_option(
      "--protocol", options.protocol,
      "full: every token of a window but the first is scored (papers); llamacpp: the second half of every window");
  add_text(*verb, options.text, "ppl", "evaluation text; wikitext2 alone is its test split", "windows (default: all)",
           "tokens a window (default 2048, or the model's maximum if less)");
}

void define_inspect(CLI::App& app, InspectOptions& options) {
  CLI::App* verb = app.add_subcommand("inspect", "Architecture, shapes, parameters and bytes of a checkpoint");
  add_common(*verb, options.common, false);
}

Command chosen(const CLI::App& app, Definitions& definitions, const std::vector<std::string>& command_line) {
  const std::string verb = app.get_subcommands().front()->get_name();
  for (CommonOptions* common : {&definitions.score.common, &definitions.plan.common, &definitions.slice.common,
                                &definitions.eval.common, &definitions.inspect.common}) {
    common->command_line = command_line;
  }
  if (verb == "score") return definitions.score;
  if (verb == "plan") return definitions.plan;
  if (verb == "slice") return definitions.slice;
  if (verb == "eval") return definitions.eval;
  return definitions.inspect;
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
  app.set_version_flag("--version", "dynslice " DYNSLICE_VERSION);
  app.require_subcommand(1);
  app.footer(std::string("Run `dynslice VERB --help` for a verb's options.\n") + kExitCodes);
  Definitions definitions;
  define_score(app, definitions.score);
  define_plan(app, definitions.plan);
  define_slice(app, definitions.slice);
  define_eval(app, definitions.eval);
  define_inspect(app, definitions.inspect);
  try {
    app.parse(argc, argv);
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
