#include <CLI/CLI.hpp>

#include "cli/options/choice_option.h"
#include "cli/options/common_options.h"
#include "cli/options/values.h"
#include "dynslice/support/error.h"

namespace dynslice::cli {
namespace {

CLI::Option* add_ratio(CLI::App& verb, const std::string& name, std::optional<double>& target,
                       const std::string& help) {
  return verb
      .add_option_function<std::string>(
          name, [name, &target](const std::string& text) { target = parse_ratio(name, text); }, help)
      ->type_name(kRatioType);
}

// What a preset means for options that were not given.
void fill_in(const CLI::App& verb, PlanningRequest& options) {
  if (options.preset != PlanPreset::kBest) return;
  if (verb.count("--method") > 0 && !options.is_modular())
    throw_error(ErrorKind::kUsage, "--preset best is of --method modular, not of ", name_of(options.method));
  options.method = WidthMethod::kModular;
  if (verb.count("--samples") == 0) {
    options.calibration.samples = 128;
    options.calibration.at_most = true;
  }
  if (!options.modular.gradient_samples) options.modular.gradient_samples = 16;
}

void add_method(CLI::App& verb, PlanningRequest& options) {
  add_choice(verb, "--method", options.method, "how width is removed")->group(basic(Group::kWhat));
  add_choice(verb, "--preset", options.preset, "")->group(basic(Group::kWhat));
  add_choice(verb, "--basis", options.basis, "of --method slice: what shares a rotation")
      ->group(advanced(Group::kWhat));
  add_choice(verb, "--directions", options.directions, "of --basis global: which directions stay")
      ->group(advanced(Group::kWhat));
  verb.add_flag("--slice-head", options.slice_head, "slice the stream that enters the output matrix too")
      ->group(advanced(Group::kWhat));
}

void add_allocation(CLI::App& verb, PlanningRequest& options) {
  add_choice(verb, "--allocate", options.given_allocator, "how the average is shared out")
      ->group(basic(Group::kWhat))
      ->default_str("lr, with --method modular blend, with --basis global constant");
  verb.add_flag_callback(
          "--uniform", [&options] { options.given_allocator = Allocator::kUniform; }, "the same as --allocate uniform")
      ->group(advanced(Group::kWhat))
      ->excludes(verb.get_option("--allocate"));
  verb.add_option("--scores", options.scores,
                  "take lr or bi scores from this file of `dynslice score -o` instead of scoring now")
      ->group(advanced(Group::kWhat))
      ->type_name("FILE");
  verb.add_option("--epsilon", options.epsilon,
                  "temperature of --allocate softmax, and in blend and search; larger is more even")
      ->group(advanced(Group::kWhat))
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb.add_option("--trials", options.trials, "models that --allocate search tries")
      ->group(advanced(Group::kWhat))
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 20))
      ->capture_default_str();
}

// What is removed by --method modular.
void add_modular(CLI::App& verb, ModularChoices& options) {
  add_choice(verb, "--attention", options.attention,
             "of --method modular with --allocate loss, uniform, blend or search: what may go of attention")
      ->group(advanced(Group::kWhat))
      ->default_str("heads");
  add_choice(verb, "--neurons", options.neurons, "of --method modular: which neurons go")
      ->group(advanced(Group::kWhat))
      ->default_str("loss");
  add_choice(verb, "--weigh-tokens", options.weigh_tokens, "of --method modular: how tokens count")
      ->group(advanced(Group::kWhat))
      ->default_str("norm");
}

// How what stays makes up for what went.
void add_refit(CLI::App& verb, ModularChoices& options) {
  add_choice(
      verb, "--refit", options.refit,
      "which matrices are refitted by least squares on the calibration text. modular: self (pruned matrices, to their "
      "own former output), dense (those and all down projections, to the dense model's stream), all (every matrix that "
      "reads or writes the stream). slice: none, dense (those that write to the stream), all")
      ->group(advanced(Group::kWhat))
      ->default_str("all, with --basis block and layer none");
  verb.add_option(
          "--error-share", options.error_share,
          "of --refit dense and all: share of what the compressed model's stream lacks so far that a refit makes "
          "up for")
      ->group(advanced(Group::kWhat))
      ->check(CLI::Range(0.0, 1.0))
      ->default_str("0.5");
  verb.add_option("--ridge", options.ridge,
                  "pull of a refit towards the weights as they are, in units of the mean square")
      ->group(advanced(Group::kWhat))
      ->check(CLI::PositiveNumber)
      ->default_str("0.0001");
}

void add_amount(CLI::App& verb, PlanningRequest& options) {
  CLI::Option* average =
      add_ratio(verb, "--avg", options.average,
                "average share of the width to slice away, 25% or 0.25; of --method modular of the MLPs' neurons, or "
                "of all layers' weights where heads may go (this or --target is required, unless a plan file is given)")
          ->group(basic(Group::kHowMuch));
  verb.add_option_function<std::string>(
          "--target", [&options](const std::string& text) { options.target = parse_target(text); },
          "share of the model that is to go, params=25%, bytes=25% or flops=25%; the average is solved for. bytes are "
          "those on disk, of a quantized source at the output's precision")
      ->group(basic(Group::kHowMuch))
      ->type_name("params=RATIO|bytes=RATIO|flops=RATIO")
      ->excludes(average);
  add_ratio(verb, "--max-ratio", options.max_ratio,
            "no layer loses more than this; the excess goes to the others in proportion")
      ->group(advanced(Group::kHowMuch))
      ->default_str("80%");
  verb.add_option_function<std::string>(
          "--base",
          [&options](const std::string& text) {
            options.base_auto = text == "auto";
            if (!options.base_auto) options.base = parse_ratio("--base", text);
          },
          "what every layer loses at least with --allocate lr; auto tries the average, then 2 points less each time "
          "down "
          "to 0, on held-out calibration text, takes the best and reports every point")
      ->group(advanced(Group::kHowMuch))
      ->type_name("auto|RATIO")
      ->default_str("60% of the average");
}

void add_rounding(CLI::App& verb, PlanningRequest& options) {
  verb.add_option_function<std::string>(
          "--round-to",
          [&options](const std::string& text) {
            options.round_to = parse_integer("--round-to", text);
            if (*options.round_to < 1) throw_error(ErrorKind::kUsage, "--round-to ", text, ": must be at least 1");
          },
          "make widths multiples of this")
      ->group(advanced(Group::kHowMuch))
      ->type_name("N")
      ->default_str("8");
}

// Which of the calibration windows serve what besides.
void add_windows(CLI::App& verb, PlanningRequest& options) {
  verb.add_option("--sweep-samples", options.sweep_samples,
                  "calibration windows of a trial of --base auto or --allocate search; half as many after them "
                  "measure the loss")
      ->group(advanced(Group::kText))
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 40))
      ->capture_default_str();
  verb.add_option("--gradient-samples", options.modular.gradient_samples,
                  "calibration windows on which the loss's gradients are taken, of --method modular, --allocate loss, "
                  "blend and search, and --directions places and loss; 0: none, all errors count alike")
      ->group(advanced(Group::kText))
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40))
      ->default_str("8");
}

}  // namespace

void add_planning(CLI::App& verb, PlanningRequest& options) {
  verb.parse_complete_callback([&verb, &options] { fill_in(verb, options); });
  add_method(verb, options);
  add_allocation(verb, options);
  add_modular(verb, options.modular);
  add_refit(verb, options.modular);
  add_amount(verb, options);
  add_rounding(verb, options);
  add_calibration(verb, options.calibration);
  add_windows(verb, options);
}

}  // namespace dynslice::cli
