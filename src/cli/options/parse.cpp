#include "cli/options/parse.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <iostream>
#include <set>
#include <type_traits>

#include "cli/help/reference.h"
#include "cli/options/choice_option.h"
#include "cli/options/common_options.h"
#include "cli/options/values.h"
#include "dynslice/score/choices.h"
#include "dynslice/support/error.h"

namespace dynslice::cli {
namespace {

struct Definitions {
  ScoreRequest score;
  PlanRequest plan;
  SliceRequest slice;
  EvalRequest eval;
  CompareRequest compare;
  BenchRequest bench;
  GenerateRequest generate;
  InspectRequest inspect;
  ModelsRequest models;
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
  add_model(*verb, options.common);
  std::string help = "what to measure", names;
  for (const MetricRow& row : kMetrics) {
    const std::string name = std::string(row.name) + (row.has_window ? ":N" : "");
    names += (names.empty() ? "" : "|") + name;
    add_meaning(help, name, row.meaning);
  }
  verb->add_option("--metric", options.metric, help)
      ->group(basic(Group::kWhat))
      ->type_name(names)
      ->capture_default_str();
  verb->add_option("--preset", options.preset,
                   "a published setting; paper: read the last layer's output after the final norm, as DynamicSlicing's "
                   "script does")
      ->group(advanced(Group::kWhat))
      ->check(CLI::IsMember({"paper"}));
  add_calibration(*verb, options.calibration);
  add_output(*verb, options.output, "FILE", "also write the scores to this JSON file, for --scores");
  verb->add_option("--matrix", options.matrix,
                   "with --metric cka: also write the picture of all pairs of layers to this SVG file")
      ->group(advanced(Group::kOutput))
      ->type_name("FILE");
  add_common(*verb, options.common, true);
  add_walk(*verb, options.common);
}

void define_plan(CLI::App& app, PlanRequest& options) {
  CLI::App* verb = app.add_subcommand("plan", "How much to slice where, and what it would cost, without slicing");
  add_model(*verb, options.common);
  add_planning(*verb, options);
  add_output(*verb, options.output, "FILE", "write the plan to this JSON file, for `dynslice slice --plan`");
  add_out_dtype(*verb, options.out_dtype);
  add_common(*verb, options.common, true);
  add_walk(*verb, options.common);
}

void define_slice(CLI::App& app, SliceRequest& options) {
  CLI::App* verb = app.add_subcommand("slice", "Remove a share of the model's width, more where it hurts less");
  add_model(*verb, options.common);
  add_planning(*verb, options);
  CLI::Option* plan =
      verb->add_option("--plan", options.plan,
                       "slice by this plan file; the calibration text is still needed, for the rotation or the refit")
          ->group(basic(Group::kWhat))
          ->type_name("FILE");
  for (const char* replaced :
       {"--avg", "--target", "--method", "--basis", "--allocate", "--uniform", "--epsilon", "--base", "--max-ratio",
        "--round-to", "--slice-head", "--scores", "--preset", "--attention", "--trials", "--sweep-samples"}) {
    plan->excludes(verb->get_option(replaced));
  }
  add_output(*verb, options.output, "FOLDER", "folder of the sliced checkpoint",
             "./NAME-sliced-RATIO, ./NAME-modular-RATIO");
  add_out_dtype(*verb, options.out_dtype);
  add_checkpoint_walk(*verb, options.common);
}

void define_inspect(CLI::App& app, InspectRequest& options) {
  CLI::App* verb = app.add_subcommand("inspect", "Architecture, shapes, parameters and bytes of a checkpoint");
  add_model(*verb, options.common);
  add_common(*verb, options.common, false);
}

void define_models(CLI::App& app, ModelsRequest& options) {
  CLI::App* verb = app.add_subcommand("models", "Which architectures are supported, and what loads their results");
  verb->add_flag("--markdown", options.markdown, "as the page docs/models.md")->group(advanced(Group::kOutput));
  add_common(*verb, options.common, false);
}

void define_export(CLI::App& app, ExportRequest& options) {
  CLI::App* verb = app.add_subcommand("export", "A GGUF file that llama.cpp runs, of a model with ordinary shapes");
  add_model(*verb, options.common);
  add_output(*verb, options.output, "FILE", "the file to write", "./NAME-TYPE.gguf");
  verb->add_flag("--gguf", options.gguf, "the format, GGUF: the only one so far")
      ->group(basic(Group::kOutput))
      ->required();
  verb->add_option("--type", options.type, "of the matrices")
      ->group(basic(Group::kOutput))
      ->check(CLI::IsMember(
          {"f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k", "q5_1", "q5_0", "q4_1", "q4_0"}))
      ->default_str("the source's; bf16 for quantized ones");
  add_common(*verb, options.common, false);
  verb->add_flag("--force", options.common.force, "replace the output file if it is a GGUF file")
      ->group(basic(Group::kOutput));
  add_dry_run(*verb, options.common);
}

void define_run(CLI::App& app, RunOptions& options) {
  CLI::App* verb = app.add_subcommand("run", "A recipe: several verbs one after the other, each on what came before");
  verb->add_option("RECIPE", options.recipe, "a JSON file that names the steps; docs/cli.md says what it looks like")
      ->type_name("FILE")
      ->required();
  add_model(*verb, options.common);
  add_output(*verb, options.output, "FOLDER", "folder of the checkpoint that the last step writes", "./NAME-RECIPE");
  verb->add_flag("--keep-steps", options.keep_steps,
                 "leave the checkpoints between the steps in OUTPUT.steps; they go as soon as they are used otherwise")
      ->group(basic(Group::kOutput));
  add_checkpoint_walk(*verb, options.common);
  verb->add_flag("--check", options.check, "read the recipe, print the commands of its steps, and do nothing else")
      ->group(basic(Group::kMachine));
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

// A verb: how it is defined, and the command that was typed. Verbs are shown in the order of the rows.
struct Verb {
  const char* name;  // "depth drop"
  void (*define)(CLI::App& app, Definitions& definitions);
  Command (*command)(Definitions& definitions, const CLI::App& verb);
};

// The options of the verb as they were typed.
template <auto kMember>
Command typed(Definitions& definitions, const CLI::App& verb) {
  auto& options = definitions.*kMember;
  options.common.given = given_options(verb);
  if constexpr (std::is_same_v<std::decay_t<decltype(options)>, RunOptions>) options.handed = handed_options(verb);
  return options;
}

template <auto kDefine, auto kMember>
void define(CLI::App& app, Definitions& definitions) {
  kDefine(app, definitions.*kMember);
}

void define_all_of_depth(CLI::App& app, Definitions& definitions) {
  define_depth(app, definitions.drop, definitions.merge, definitions.streamline);
}

template <auto kDefine, auto kMember>
constexpr Verb verb_row(const char* name) {
  return {name, define<kDefine, kMember>, typed<kMember>};
}

constexpr std::array kVerbs = {
    verb_row<define_score, &Definitions::score>("score"),
    verb_row<define_plan, &Definitions::plan>("plan"),
    verb_row<define_slice, &Definitions::slice>("slice"),
    Verb{"depth drop", define_all_of_depth, typed<&Definitions::drop>},
    Verb{"depth merge", nullptr, typed<&Definitions::merge>},
    Verb{"depth streamline", nullptr, typed<&Definitions::streamline>},
    verb_row<define_heal, &Definitions::heal>("heal"),
    verb_row<define_quantize, &Definitions::quantize>("quantize"),
    verb_row<define_eval, &Definitions::eval>("eval"),
    verb_row<define_compare, &Definitions::compare>("compare"),
    verb_row<define_bench, &Definitions::bench>("bench"),
    verb_row<define_generate, &Definitions::generate>("generate"),
    verb_row<define_inspect, &Definitions::inspect>("inspect"),
    verb_row<define_models, &Definitions::models>("models"),
    verb_row<define_export, &Definitions::export_>("export"),
    verb_row<define_run, &Definitions::run>("run"),
};

Command chosen(const CLI::App& app, Definitions& definitions, const std::vector<std::string>& command_line) {
  const CLI::App* verb = app.get_subcommands().front();
  std::string name = verb->get_name();
  if (!verb->get_subcommands().empty()) {
    verb = verb->get_subcommands().front();
    name += " " + verb->get_name();
  }
  const auto row = std::ranges::find_if(kVerbs, [&](const Verb& one) { return one.name == name; });
  Command command = row->command(definitions, *verb);
  std::visit(
      [&](auto& options) {
        options.common.command_line = command_line;
        options.common.verb = name;
      },
      command);
  return command;
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
    app.require_subcommand(1);
    for (const Verb& verb : kVerbs) {
      if (verb.define != nullptr) verb.define(app, definitions);
    }
    define_reference(app, reference);
    set_help_format(app);
    app.set_version_flag("--version", "dynslice " DYNSLICE_VERSION, "print the version and exit")
        ->group(basic(Group::kHelp));
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
