#include <CLI/CLI.hpp>

#include "cli/options/common_options.h"
#include "cli/options/values.h"

namespace dynslice::cli {

namespace {

void add_prompt(CLI::App& verb, GenerateRequest& options) {
  CLI::Option* prompt = verb.add_option("--prompt", options.prompt, "the text to go on from")
                            ->group(basic(Group::kText))
                            ->type_name("STRING");
  verb.add_option("--prompt-file", options.prompt_file,
                  "a file with that text, all of it; - is standard input, which is also read without a prompt unless "
                  "it is a terminal")
      ->group(basic(Group::kText))
      ->type_name("FILE")
      ->excludes(prompt);
  CLI::Option* chat = verb.add_flag("--chat", options.chat,
                                    "the prompt is a message: put it into the model's chat template, and write the "
                                    "answer")
                          ->group(basic(Group::kText));
  verb.add_option("--system", options.system, "with --chat: the system message")
      ->group(basic(Group::kText))
      ->type_name("STRING")
      ->needs(chat);
}

// How a token is chosen.
void add_sampling(CLI::App& verb, GenerateRequest& options) {
  verb.add_option("--temperature", options.temperature,
                  "draw tokens by probability, of logits divided by this; 0: take the likeliest one each time")
      ->group(basic(Group::kWhat))
      ->type_name("X")
      ->capture_default_str();
  verb.add_option("--top-k", options.top_k, "draw from the K likeliest tokens only; 0: from all")
      ->group(basic(Group::kWhat))
      ->type_name("K")
      ->capture_default_str();
  verb.add_option("--top-p", options.top_p,
                  "draw only from the fewest tokens whose probabilities reach this together, after --top-k")
      ->group(basic(Group::kWhat))
      ->type_name("P")
      ->capture_default_str();
  verb.add_option("--seed", options.seed, "of the drawing; the same one gives the same text")
      ->group(advanced(Group::kWhat))
      ->type_name("N")
      ->capture_default_str();
}

// Where the text ends.
void add_end(CLI::App& verb, GenerateRequest& options) {
  verb.add_option("--max-tokens", options.max_tokens, "tokens to write at the most")
      ->group(basic(Group::kHowMuch))
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  verb.add_option("--stop", options.stops, "end before this text, of which nothing is shown; may be given again")
      ->group(advanced(Group::kHowMuch))
      ->type_name("STRING")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  verb.add_flag("--ignore-eos", options.ignore_end, "go on behind tokens that end a text, up to --max-tokens")
      ->group(advanced(Group::kHowMuch));
}

}  // namespace

void define_generate(CLI::App& app, GenerateRequest& options) {
  CLI::App* verb = app.add_subcommand("generate", "What it writes: text that goes on from a prompt, or answers it");
  add_model(*verb, options.common);
  add_prompt(*verb, options);
  add_sampling(*verb, options);
  add_end(*verb, options);
  add_common(*verb, options.common, true);
  add_dry_run(*verb, options.common);
}

}  // namespace dynslice::cli
