#include "cli/options/parse.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <set>

#include "cli/help/reference.h"
#include "cli/options/common_options.h"
#include "cli/options/values.h"
#include "dynslice/support/error.h"

namespace dynslice::cli {
namespace {

constexpr const char* kFooter =
    "Run `dynslice VERB --help` for a verb's options.\n"
    "Exit codes: 0 done, 1 a defect of dynslice, 2 wrong usage, 3 bad input file, 4 missing data or network,\n"
    "5 out of memory or disk, 130 interrupted.\n";

void add_modular(CLI::App& verb, ModularChoices& options) {
  verb.add_option("--attention", options.attention,
                  "of --method modular with --allocate loss, blend or search: what may go of attention; heads: heads, "
                  "where that costs less than neurons, keep: nothing")
      ->check(CLI::IsMember({"heads", "keep"}))
      ->default_str("heads");
  verb.add_option(
          "--refit", options.refit,
          "which matrices are refitted by least squares on the calibration text. modular: self (pruned matrices, to "
          "their own former output), dense (those and all down projections, to the dense model's stream), all (every "
          "matrix that reads or writes the stream). slice: none, dense (those that write to the stream), all")
      ->check(CLI::IsMember({"none", "dense", "self", "all"}))
      ->default_str("all, with --basis block and layer none");
  verb.add_option("--neurons", options.neurons,
                  "of --method modular: which neurons go; loss: those that cost the loss least when the others are "
                  "refitted (optimal brain surgeon), leverage: those with the smallest ridge leverage scores (MoDeGPT)")
      ->check(CLI::IsMember({"loss", "leverage"}))
      ->default_str("loss");
  verb.add_option(
          "--weigh-tokens", options.weigh_tokens,
          "of --method modular: how tokens count; norm: by the inverse square of their stream's norm, alike: the same")
      ->check(CLI::IsMember({"norm", "alike"}))
      ->default_str("norm");
  verb.add_option(
          "--error-share", options.error_share,
          "of --refit dense and all: share of what the compressed model's stream lacks so far that a refit makes "
          "up for")
      ->check(CLI::Range(0.0, 1.0))
      ->default_str("0.5");
  verb.add_option("--ridge", options.ridge,
                  "pull of a refit towards the weights as they are, in units of the mean square")
      ->check(CLI::PositiveNumber)
      ->default_str("0.0001");
  verb.add_option("--gradient-samples", options.gradient_samples,
                  "calibration windows on which the loss's gradients are taken, of --method modular, --allocate loss, "
                  "blend and search, and --directions places and loss; 0: none, all errors count alike")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40))
      ->default_str("8");
}

void add_planning(CLI::App& verb, PlanningRequest& options) {
  verb.add_option(
          "--method", options.method,
          "how width is removed; slice: the residual stream, by rotation and slicing (SliceGPT); modular: neurons "
          "inside the MLPs and attention heads, the others being refitted (MoDeGPT), which at equal parameters costs "
          "far "
          "less perplexity, and with --allocate constant gives an ordinary model that every runtime loads")
      ->check(CLI::IsMember({"slice", "modular"}))
      ->capture_default_str();
  verb.parse_complete_callback([&verb, &options] {
    if (options.preset == "best") {
      if (verb.count("--method") > 0 && options.method != "modular")
        throw_error(ErrorKind::kUsage, "--preset best is of --method modular, not of ", options.method);
      options.method = "modular";
      if (verb.count("--samples") == 0) {
        options.calibration.samples = 128;
        options.calibration.at_most = true;
      }
      if (!options.modular.gradient_samples) options.modular.gradient_samples = 16;
    }
    if (!options.allocator.empty()) return;
    options.allocator = options.method == "modular" ? "blend" : options.basis == "global" ? "constant" : "lr";
  });
  verb.add_option("--basis", options.basis,
                  "of --method slice: what shares a rotation; block: every half layer's stream has its own (SliceGPT), "
                  "layer: the streams in front of a layer's attention and of its MLP have one, which needs matrices on "
                  "half as many residual paths, global: all streams have one, and one width, which gives an ordinary "
                  "model that every runtime loads")
      ->check(CLI::IsMember({"block", "layer", "global"}))
      ->capture_default_str();
  verb.add_option(
          "--directions", options.directions,
          "of --basis global: which directions stay; energy: those with most of the normalized streams' energy, "
          "places: the same, places weighed by what the loss says of errors there, loss: those that carry energy and "
          "matter to the loss, by the second moment of its gradients")
      ->check(CLI::IsMember({"energy", "places", "loss"}))
      ->capture_default_str();
  const auto ratio = [&verb](const std::string& name, std::optional<double>& target, const std::string& help) {
    return verb
        .add_option_function<std::string>(
            name, [name, &target](const std::string& text) { target = parse_ratio(name, text); }, help)
        ->type_name(kRatioType);
  };
  CLI::Option* average =
      ratio("--avg", options.average,
            "average share of the width to slice away, 25% or 0.25; of --method modular of the MLPs' neurons, or of "
            "all layers' weights where heads may go (this or --target is required, unless a plan file is given)");
  verb.add_option_function<std::string>(
          "--target", [&options](const std::string& text) { options.target = parse_target(text); },
          "share of the model that is to go, params=25%, bytes=25% or flops=25%; the average is solved for. bytes are "
          "those on disk, of a quantized source at the output's precision")
      ->type_name("params=RATIO|bytes=RATIO|flops=RATIO")
      ->excludes(average);
  verb.add_option("--allocate", options.allocator,
                  "how the average is shared out; lr: more where layers are redundant, constant: the same everywhere, "
                  "softmax: more where layers change the stream less (MoDeGPT), spectrum (of --method slice): more "
                  "where the stream has little energy in its least directions and layers change it less, loss: by what "
                  "a layer's neurons, heads or directions cost the loss, blend: halfway between loss and softmax, "
                  "search: start from the best of loss, softmax, lr and blend, then improve it by trials on held-out "
                  "text")
      ->check(CLI::IsMember({"lr", "constant", "softmax", "spectrum", "loss", "blend", "search"}))
      ->default_str("lr, with --method modular blend, with --basis global constant");
  verb.add_option("--epsilon", options.epsilon,
                  "temperature of --allocate softmax, and in blend and search; larger is more even")
      ->check(CLI::PositiveNumber)
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
                  "calibration windows of a trial of --base auto or --allocate search; half as many after them "
                  "measure the loss")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 40))
      ->capture_default_str();
  verb.add_option("--trials", options.trials, "models that --allocate search tries")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 20))
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
                  "best: what loses least at a given size, which is --method modular with more text, 128 windows (or "
                  "as many as "
                  "there are) and gradients of 16; paper: "
                  "DynamicSlicing's own dimensions (last layer scored after the final norm, no cap, --round-to 1)")
      ->check(CLI::IsMember({"best", "paper"}));
  add_modular(verb, options.modular);
  add_out_dtype(verb, options.out_dtype);
  add_calibration(verb, options.calibration);
}

struct Definitions {
  ScoreRequest score;
  PlanRequest plan;
  SliceRequest slice;
  EvalRequest eval;
  CompareRequest compare;
  BenchRequest bench;
  GenerateRequest generate;
  InspectRequest inspect;
  ExportRequest export_;
  DropRequest drop;
  MergeRequest merge;
  StreamlineRequest streamline;
  HealRequest heal;
  QuantizeRequest quantize;
  RunOptions run;
};

void define_score(CLI::App& app, ScoreRequest& options) {
  CLI::App* verb = app.add_subcommand("score", "Which layers are redundant: one score per layer");
  add_common(*verb, options.common, true);
  add_walk(*verb, options.common);
  verb->add_option("--metric", options.metric,
                   "what to measure; lr: mean cosine of a layer's input and output (low is important), bi: 1 - lr, "
                   "lim: -cosine (LayerwiseQuant), angular: arccos(cosine) / pi, cka: linear CKA of input and output, "
                   "and of all pairs of layers, "
                   "window:N: cosine across N layers, for every start, zd: share of the layer's weights more than a "
                   "standard deviation above their mean (low is important), which needs no text")
      ->type_name("lr|bi|lim|angular|cka|zd|window:N")
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

void define_plan(CLI::App& app, PlanRequest& options) {
  CLI::App* verb = app.add_subcommand("plan", "How much to slice where, and what it would cost, without slicing");
  add_common(*verb, options.common, true);
  add_walk(*verb, options.common);
  add_planning(*verb, options);
  verb->add_option("-o,--output", options.output, "write the plan to this JSON file, for `dynslice slice --plan`")
      ->type_name("FILE");
}

void define_slice(CLI::App& app, SliceRequest& options) {
  CLI::App* verb = app.add_subcommand("slice", "Remove a share of the model's width, more where it hurts less");
  add_common(*verb, options.common, true);
  add_walk(*verb, options.common, "replace the output folder if dynslice wrote it; without --resume, ");
  add_planning(*verb, options);
  CLI::Option* plan =
      verb->add_option("--plan", options.plan,
                       "slice by this plan file; the calibration text is still needed, for the rotation or the refit")
          ->type_name("FILE");
  for (const char* replaced :
       {"--avg", "--target", "--method", "--basis", "--allocate", "--epsilon", "--base", "--max-ratio", "--round-to",
        "--slice-head", "--scores", "--preset", "--attention", "--trials", "--sweep-samples"}) {
    plan->excludes(verb->get_option(replaced));
  }
  verb->add_option("-o,--output", options.output, "folder of the sliced checkpoint")
      ->type_name("FOLDER")
      ->default_str("./NAME-sliced-RATIO, ./NAME-modular-RATIO");
}

void define_inspect(CLI::App& app, InspectRequest& options) {
  CLI::App* verb = app.add_subcommand("inspect", "Architecture, shapes, parameters and bytes of a checkpoint");
  add_common(*verb, options.common, false);
}

void define_export(CLI::App& app, ExportRequest& options) {
  CLI::App* verb = app.add_subcommand("export", "A GGUF file that llama.cpp runs, of a model with ordinary shapes");
  add_common(*verb, options.common, false);
  verb->add_flag("--gguf", options.gguf, "the format, GGUF: the only one so far")->required();
  verb->add_option("--type", options.type, "of the matrices")
      ->check(CLI::IsMember(
          {"f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k", "q5_1", "q5_0", "q4_1", "q4_0"}))
      ->default_str("the source's; bf16 for quantized ones");
  verb->add_option("-o,--output", options.output, "the file to write")
      ->type_name("FILE")
      ->default_str("./NAME-TYPE.gguf");
  add_dry_run(*verb, options.common);
  verb->add_flag("--force", options.common.force, "replace the output file if it is a GGUF file");
}

void define_run(CLI::App& app, RunOptions& options) {
  CLI::App* verb = app.add_subcommand("run", "A recipe: several verbs one after the other, each on what came before");
  verb->add_option("RECIPE", options.recipe, "a JSON file that names the steps; docs/cli.md says what it looks like")
      ->type_name("FILE")
      ->required();
  add_common(*verb, options.common, true);
  add_walk(*verb, options.common, "replace the output folder if dynslice wrote it; without --resume, ");
  verb->add_option("-o,--output", options.output, "folder of the checkpoint that the last step writes")
      ->type_name("FOLDER")
      ->default_str("./NAME-RECIPE");
  verb->add_flag("--keep-steps", options.keep_steps,
                 "leave the checkpoints between the steps in OUTPUT.steps; they go as soon as they are used otherwise");
  verb->add_flag("--check", options.check, "read the recipe, print the commands of its steps, and do nothing else");
}

// The options that were given, without these, and their values.
std::vector<std::pair<std::string, std::string>> options_but(const CLI::App& verb, const std::set<std::string>& names) {
  std::vector<std::pair<std::string, std::string>> given;
  for (const CLI::Option* option : verb.get_options()) {
    if (option->count() == 0 || names.contains(option->get_name())) continue;
    std::string value;
    for (const std::string& part : option->results()) value += (value.empty() ? "" : " ") + part;
    given.emplace_back(option->get_name(), value);
  }
  return given;
}

// The options that decide the result: all but those that say how to show it, where to put it, and whether to resume.
std::vector<std::pair<std::string, std::string>> given_options(const CLI::App& verb) {
  static const std::set<std::string> kNeutral = {
      "MODEL",    "--dry-run",     "--max-memory", "--activation-memory", "--scratch-dir", "--resume",
      "--force",  "--json",        "--quiet",      "--verbose",           "--log-file",    "--output",
      "--matrix", "--log-samples", "--data-dir",   "--threads",           "RECIPE",        "--keep-steps"};
  return options_but(verb, kNeutral);
}

// The options of `run` that are meant for its steps.
std::vector<std::pair<std::string, std::string>> handed_options(const CLI::App& verb) {
  static const std::set<std::string> kOwn = {"RECIPE",  "MODEL",    "--output",  "--keep-steps",
                                             "--check", "--resume", "--force",   "--dry-run",
                                             "--json",  "--quiet",  "--verbose", "--log-file"};
  return options_but(verb, kOwn);
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
  if (name == "compare") return command(definitions.compare);
  if (name == "export") return command(definitions.export_);
  if (name == "bench") return command(definitions.bench);
  if (name == "generate") return command(definitions.generate);
  if (name == "depth drop") return command(definitions.drop);
  if (name == "depth merge") return command(definitions.merge);
  if (name == "depth streamline") return command(definitions.streamline);
  if (name == "heal") return command(definitions.heal);
  if (name == "quantize") return command(definitions.quantize);
  if (name == "run") {
    definitions.run.handed = handed_options(*verb);
    return command(definitions.run);
  }
  return command(definitions.inspect);
}

// CLI11's messages may have several lines; ours have one.
std::string one_line(std::string text) {
  for (char& c : text) {
    if (c == '\n') c = ' ';
  }
  return text;
}

// All definitions, and what is typed.
struct CommandLine {
  CLI::App app{"dynslice makes large language models smaller: score layers, slice them, measure what it cost.",
               "dynslice"};
  Definitions definitions;
  ReferenceOptions reference;

  CommandLine() {
    app.set_help_flag("-h,--help", "print this help and exit");
    app.set_version_flag("--version", "dynslice " DYNSLICE_VERSION, "print the version and exit");
    app.require_subcommand(1);
    app.footer(kFooter);
    define_score(app, definitions.score);
    define_plan(app, definitions.plan);
    define_slice(app, definitions.slice);
    define_depth(app, definitions.drop, definitions.merge, definitions.streamline);
    define_heal(app, definitions.heal);
    define_quantize(app, definitions.quantize);
    define_eval(app, definitions.eval);
    define_compare(app, definitions.compare);
    define_bench(app, definitions.bench);
    define_generate(app, definitions.generate);
    define_inspect(app, definitions.inspect);
    define_export(app, definitions.export_);
    define_run(app, definitions.run);
    define_reference(app, reference);
    set_help_format(app);
  }
};

}  // namespace

std::variant<Command, int> parse_command_line(int argc, char** argv) {
  CommandLine line;
  try {
    line.app.parse(argc, argv);
    if (const auto text = reference_text(line.app, line.reference)) {
      std::cout << *text << std::flush;
      return std::cout ? 0 : static_cast<int>(ErrorKind::kOutOfResources);
    }
    return chosen(line.app, line.definitions, std::vector<std::string>(argv, argv + argc));
  } catch (const CLI::Success& done) {
    return line.app.exit(done);
  } catch (const CLI::ParseError& error) {
    std::cerr << "dynslice: " << one_line(error.what()) << " (see --help)\n";
  } catch (const Error& error) {
    std::cerr << "dynslice: " << one_line(error.what()) << '\n';
  }
  return static_cast<int>(ErrorKind::kUsage);
}

Command parse_words(const std::vector<std::string>& words) {
  CommandLine line;
  std::vector<const char*> arguments;
  for (const std::string& word : words) arguments.push_back(word.c_str());
  try {
    line.app.parse(static_cast<int>(arguments.size()), arguments.data());
  } catch (const CLI::ParseError& error) {
    throw Error(ErrorKind::kUsage, one_line(error.what()));
  }
  return chosen(line.app, line.definitions, words);
}

VerbReference describe_program() {
  CommandLine line;
  return describe_command_line(line.app);
}

}  // namespace dynslice::cli
