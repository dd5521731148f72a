#include <CLI/CLI.hpp>

#include "cli/options/choice_option.h"
#include "cli/options/common_options.h"
#include "cli/options/values.h"
#include "dynslice/support/error.h"

namespace dynslice::cli {
namespace {

// What the verbs below `depth` share, besides MODEL.
void add_depth(CLI::App& verb, DepthRequest& options, const std::string& samples, const std::string& seqlen) {
  add_text(verb, options.calibration, "calib", "calibration",
           "training split, or validation if there is no training split", samples, seqlen);
  add_output(verb, options.output, "FOLDER", "folder of the written checkpoint",
             "./NAME-" + verb.get_name() + "-LAYERS");
  add_out_dtype(verb, options.out_dtype);
  add_checkpoint_walk(verb, options.common);
}

// How many layers go, by number or by share.
void add_layers(CLI::App& verb, DepthRequest& options) {
  CLI::Option* number =
      verb.add_option_function<int64_t>(
              "--layers", [&options](int64_t layers) { options.layers = layers; }, "number of layers that go")
          ->group(basic(Group::kHowMuch))
          ->check(CLI::Range(int64_t{0}, int64_t{1} << 20))
          ->type_name("N");
  verb.add_option_function<std::string>(
          "--ratio", [&options](const std::string& text) { options.ratio = parse_ratio("--ratio", text); },
          "share of the layers that goes, to the nearest whole number of them")
      ->group(basic(Group::kHowMuch))
      ->type_name(kRatioType)
      ->excludes(number);
}

void define_drop(CLI::App& depth, DropRequest& options) {
  CLI::App* verb = depth.add_subcommand("drop", "Remove the layers that change the stream least, or named ones");
  add_model(*verb, options.common);
  add_layers(*verb, options);
  add_choice(*verb, "--order", options.order, "which go first")->group(basic(Group::kWhat));
  verb->add_option_function<std::string>(
          "--indices", [&options](const std::string& text) { options.indices = parse_indices("--indices", text); },
          "these layers, numbered from 0, such as 20-25 or 3,7,20-25; needs no calibration text")
      ->group(basic(Group::kHowMuch))
      ->type_name("A-B,...")
      ->excludes(verb->get_option("--layers"))
      ->excludes(verb->get_option("--ratio"))
      ->excludes(verb->get_option("--order"));
  add_depth(*verb, options, "32; 8 with --order ppl", "1024, or the model's maximum if less");
}

void define_merge(CLI::App& depth, MergeRequest& options) {
  CLI::App* verb = depth.add_subcommand(
      "merge", "Make consecutive layers one, as many as can be while the final hidden states stay alike (SLM)");
  add_model(*verb, options.common);
  CLI::Option* threshold = verb->add_option_function<double>(
                                   "--threshold", [&options](double value) { options.threshold = value; },
                                   "a range of layers grows while the cosine of the final hidden states is above this")
                               ->group(basic(Group::kHowMuch))
                               ->check(CLI::Range(-1.0, 1.0))
                               ->type_name("X")
                               ->default_str("0.72");
  CLI::Option* target = verb->add_option_function<int64_t>(
                                "--target-layers", [&options](int64_t layers) { options.target_layers = layers; },
                                "number of layers that are left: the highest threshold that gets there is found")
                            ->group(basic(Group::kHowMuch))
                            ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
                            ->type_name("N")
                            ->excludes(threshold);
  verb->add_option_function<std::string>(
          "--ratio", [&options](const std::string& text) { options.ratio = parse_ratio("--ratio", text); },
          "share of the layers that goes, in the place of --target-layers")
      ->group(basic(Group::kHowMuch))
      ->type_name(kRatioType)
      ->excludes(threshold)
      ->excludes(target);
  add_choice(*verb, "--merge-rule", options.rule, "what a merged layer is")->group(basic(Group::kWhat));
  add_depth(*verb, options, "10", "128");
}

// What stands for the layers that went.
void add_replacement(CLI::App& verb, StreamlineRequest& options) {
  add_choice(verb, "--replace", options.replace, "what stands for the layers that went")->group(basic(Group::kWhat));
  std::string which = "which layers go";
  add_meanings<WindowChoice>(which);
  add_meaning(which, "N", "from layer N on");
  verb.add_option_function<std::string>(
          "--window",
          [&options](const std::string& text) {
            if (const auto search = choice_named<WindowChoice>(text)) {
              options.window = *search;
            } else if (text.find_first_not_of("0123456789") == std::string::npos) {
              options.start = parse_integer("--window", text);
            } else {
              throw_error(ErrorKind::kUsage, "--window ", text, ": is not one of ",
                          CLI::detail::join(choice_names<WindowChoice>(), ", "), ", or a layer's number");
            }
          },
          which)
      ->group(basic(Group::kWhat))
      ->type_name("search|cosine|N")
      ->default_str(name_of(options.window));
  verb.add_option("--ridge", options.ridge,
                  "pull of the map towards the identity, in units of the mean variance of what it maps")
      ->group(advanced(Group::kWhat))
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
}

// How it is trained.
void add_replacement_training(CLI::App& verb, StreamlineRequest& options) {
  // LLM-Streamline's; its batch of 128 is for 30,000 texts.
  options.training.learning_rate = 2e-4;
  options.training.usual_final_learning_rate = 5e-5;
  options.training.weight_decay = 1e-3;
  options.training.clip = 5;
  add_training(verb, options.training);
  add_choice(verb, "--loss", options.loss, "what a trained replacement learns")->group(advanced(Group::kTraining));
  add_choice(verb, "--stream-dtype", options.stream_dtype, "number format of the streams that it is trained on")
      ->group(advanced(Group::kTraining));
}

void define_streamline(CLI::App& depth, StreamlineRequest& options) {
  CLI::App* verb = depth.add_subcommand("streamline",
                                        "Remove consecutive layers and let a linear map, or a trained layer, make up "
                                        "for them (LLM-Streamline, ReplaceMe)");
  add_model(*verb, options.common);
  add_replacement(*verb, options);
  add_layers(*verb, options);
  add_replacement_training(*verb, options);
  add_depth(*verb, options, "32; 128, or as many as there are, for what is trained",
            "1024, or the model's maximum if less");
}

}  // namespace

void define_depth(CLI::App& app, DropRequest& drop, MergeRequest& merge, StreamlineRequest& streamline) {
  CLI::App* depth = app.add_subcommand("depth", "Fewer layers: drop, merge or streamline them");
  depth->require_subcommand(1);
  define_drop(*depth, drop);
  define_merge(*depth, merge);
  define_streamline(*depth, streamline);
}

}  // namespace dynslice::cli
