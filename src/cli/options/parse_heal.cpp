#include <CLI/CLI.hpp>
#include <sstream>

#include "cli/options/choice_option.h"
#include "cli/options/common_options.h"

namespace dynslice::cli {
namespace {

CLI::Validator positive(const std::string& name) {
  return CLI::Validator(
      [name](const std::string& text) {
        double value = 0;
        return CLI::detail::lexical_cast(text, value) && value > 0 && value < 1e9 ? std::string()
                                                                                  : "must be a number above 0";
      },
      "", name);
}

// How long is trained, and on how much at once.
void add_duration(CLI::App& verb, TrainingRequest& options) {
  CLI::Option* epochs = verb.add_option("--epochs", options.epochs, "passes over the text")
                            ->group(basic(Group::kTraining))
                            ->check(positive("epochs"))
                            ->type_name("X")
                            ->capture_default_str();
  verb.add_option_function<int64_t>(
          "--updates", [&options](int64_t updates) { options.updates = updates; },
          "updates of the parameters, in the place of passes over the text")
      ->group(basic(Group::kTraining))
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 20))
      ->type_name("N")
      ->excludes(epochs);
  verb.add_option("--batch", options.batch, "sequences an update")
      ->group(advanced(Group::kTraining))
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  verb.add_option("--micro-batch", options.micro_batch,
                  "sequences that go through the model together; does not change the result beyond rounding")
      ->group(advanced(Group::kTraining))
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->default_str("as many as make 2048 tokens, on CUDA 16384");
}

void add_optimizer(CLI::App& verb, TrainingRequest& options) {
  verb.add_option("--learning-rate", options.learning_rate, "of AdamW, at its highest")
      ->group(basic(Group::kTraining))
      ->check(positive("learning rate"))
      ->type_name("X")
      ->capture_default_str();
  std::ostringstream usual;
  usual << options.usual_final_learning_rate;
  verb.add_option_function<double>(
          "--final-learning-rate", [&options](double rate) { options.final_learning_rate = rate; },
          "reached by a cosine at the end")
      ->group(advanced(Group::kTraining))
      ->check(CLI::Range(0.0, 1e9))
      ->type_name("X")
      ->default_str(usual.str());
  verb.add_option("--warmup", options.warmup, "share of the updates in which the learning rate rises to its highest")
      ->group(advanced(Group::kTraining))
      ->check(CLI::Range(0.0, 1.0))
      ->type_name("X")
      ->capture_default_str();
  verb.add_option("--weight-decay", options.weight_decay, "of AdamW, on matrices alone")
      ->group(advanced(Group::kTraining))
      ->check(CLI::Range(0.0, 1e9))
      ->type_name("X")
      ->capture_default_str();
  verb.add_option("--clip", options.clip, "largest norm of all gradients together; 0: any")
      ->group(advanced(Group::kTraining))
      ->check(CLI::Range(0.0, 1e9))
      ->type_name("X")
      ->capture_default_str();
}

void add_validation(CLI::App& verb, TrainingRequest& options) {
  verb.add_option("--held-out", options.held_out,
                  "sequences at the end of the text that are not trained on: the parameters with the lowest loss on "
                  "them are kept")
      ->group(advanced(Group::kTraining))
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->default_str("a sixteenth, 1 to 16");
  verb.add_option("--validations", options.validations, "times that the held-out loss is measured on the way")
      ->group(advanced(Group::kTraining))
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  verb.add_option("--patience", options.patience,
                  "stop after so many measurements without a lower held-out loss; 0: never")
      ->group(advanced(Group::kTraining))
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30))
      ->capture_default_str();
}

// What is trained by `heal`.
void add_updates(CLI::App& verb, HealRequest& options) {
  verb.add_flag("--lora", options.lora, "low-rank updates of the linears, trained on the next token: the default")
      ->group(basic(Group::kWhat));
  verb.add_option("--distill", options.distill,
                  "instead: layer by layer, low-rank updates that bring the stream back to that of this model, the one "
                  "that was made smaller; needs the memory of a layer, not of a model")
      ->group(basic(Group::kWhat))
      ->type_name("MODEL");
  verb.add_option(
          "--target-modules", options.target_modules,
          "linears that are updated: all, or some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, "
          "down_proj with commas between them (of gated delta nets in_proj_qkv, in_proj_z, in_proj_b, in_proj_a and "
          "out_proj, too)")
      ->group(advanced(Group::kWhat))
      ->type_name("all|NAMES")
      ->capture_default_str();
  verb.add_option("--rank", options.rank, "of the updates")
      ->group(basic(Group::kHowMuch))
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 16))
      ->capture_default_str();
  verb.add_option("--alpha", options.alpha, "updates are scaled by alpha / rank")
      ->group(advanced(Group::kHowMuch))
      ->check(CLI::Range(1e-6, 1e6))
      ->type_name("X")
      ->capture_default_str();
  verb.add_option("--dropout", options.dropout, "share of its inputs that an update does not see in training")
      ->group(advanced(Group::kTraining))
      ->check(CLI::Range(0.0, 0.99))
      ->type_name("X")
      ->capture_default_str();
}

CLI::Option* add_training_text(CLI::App& verb, HealRequest& options) {
  add_text(verb, options.text, "text", "training", "training split, or validation if there is no training split", "all",
           "1024, or the model's maximum if less");
  return verb
      .add_option("--instructions", options.instructions,
                  "train on questions and answers in the place of text: a JSON list, or a .jsonl file, of objects "
                  "with instruction, input (may be empty) and output, as alpaca's; the loss counts on answers")
      ->group(basic(Group::kText))
      ->type_name("FILE");
}

}  // namespace

void add_training(CLI::App& verb, TrainingRequest& options) {
  add_duration(verb, options);
  add_optimizer(verb, options);
  add_validation(verb, options);
  verb.add_option("--seed", options.seed, "of the order of sequences, of first values and of dropout")
      ->group(advanced(Group::kTraining))
      ->capture_default_str();
  add_choice(verb, "--keep-activations", options.keep_activations, "what of the forward is kept for the way back")
      ->group(advanced(Group::kTraining));
}

void define_heal(CLI::App& app, HealRequest& options) {
  CLI::App* verb = app.add_subcommand("heal", "Train a smaller model back towards what it was: LoRA, or distillation");
  add_model(*verb, options.common);
  add_updates(*verb, options);
  options.training.learning_rate = 1e-3;  // of the rates tried, 2e-4 to 4e-3, a cautious one: see docs/depth.md
  add_training(*verb, options.training);
  CLI::Option* instructions = add_training_text(*verb, options);
  for (const char* other : {"--text", "--text-range", "--shuffle", "--distill"})
    instructions->excludes(verb->get_option(other));
  add_output(*verb, options.output, "FOLDER", "folder of the healed checkpoint, or of the adapter", "./NAME-healed");
  CLI::Option* adapter =
      verb->add_flag("--adapter", options.adapter,
                     "write the updates alone, as an adapter that peft loads, instead of a model that has them in its "
                     "weights")
          ->group(basic(Group::kOutput));
  add_out_dtype(*verb, options.out_dtype);
  adapter->excludes(verb->get_option("--out-dtype"));
  add_checkpoint_walk(*verb, options.common);
}

}  // namespace dynslice::cli
