#include <CLI/CLI.hpp>

#include "cli/options/choice_option.h"
#include "cli/options/common_options.h"

namespace dynslice::cli {
namespace {

// Options of tasks, for EvalRequest and CompareRequest.
template <typename Options>
CLI::Option* add_tasks(CLI::App& verb, Options& options) {
  CLI::Option* tasks =
      verb.add_option("--tasks", options.tasks,
                      "question answering: piqa, arc_easy, arc_challenge, hellaswag, winogrande, boolq, openbookqa, "
                      "social_iqa, lambada_openai, mmlu, with commas between them; no perplexity then unless --ppl is "
                      "given too")
          ->group(basic(Group::kWhat))
          ->check([](const std::string& names) { return std::string(names.empty() ? "names no task" : ""); })
          ->type_name("TASK,...");
  verb.add_option("--limit", options.limit, "only the first questions of every task")
      ->group(basic(Group::kHowMuch))
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->default_str("all")
      ->needs(tasks);
  verb.add_option("--num-fewshot", options.examples, "solved examples in front of every question")
      ->group(advanced(Group::kHowMuch))
      ->check(CLI::Range(int64_t{0}, int64_t{1000}))
      ->default_str("0; 5 for mmlu")
      ->needs(tasks);
  return tasks;
}

void add_protocol(CLI::App& verb, PerplexityProtocol& protocol) {
  add_choice(verb, "--protocol", protocol, "which tokens of a window are scored")->group(advanced(Group::kWhat));
}

// What is measured of speed, for BenchRequest and CompareRequest.
template <typename Options>
void add_speed(CLI::App& verb, Options& options, const std::string& group) {
  const auto count = [&verb, &group](const std::string& name, int64_t& target, int64_t least, const std::string& help) {
    verb.add_option(name, target, help)
        ->group(group)
        ->check(CLI::Range(least, int64_t{1} << 30))
        ->capture_default_str();
  };
  count("--prompt-tokens", options.prompt_tokens, 1, "tokens of every prompt");
  count("--decode-tokens", options.decode_tokens, 0, "tokens written after the prompt, one at a time");
  count("--repeats", options.repeats, 1, "times that count, after one that warms up");
  count("--batch", options.batch, 1, "sequences side by side");
}

void add_evaluation_text(CLI::App& verb, TextOptions& options) {
  add_text(verb, options, "ppl", "evaluation", "test split, of c4 validation", "all",
           "2048, or the model's maximum if less");
}

void add_resampling(CLI::App& verb, CompareRequest& options) {
  verb.add_option("--resamples", options.resamples, "samples that the intervals of differences are made of")
      ->group(advanced(Group::kHowMuch))
      ->check(CLI::Range(int64_t{100}, int64_t{1} << 24))
      ->capture_default_str();
  verb.add_option("--seed", options.seed, "of those samples")->group(advanced(Group::kHowMuch))->capture_default_str();
}

}  // namespace

void define_eval(CLI::App& app, EvalRequest& options) {
  CLI::App* verb = app.add_subcommand("eval", "What it cost: perplexity and tasks of a dense or sliced model");
  add_model(*verb, options.common);
  CLI::Option* tasks = add_tasks(*verb, options);
  verb->add_option("--against", options.against, "a second model to compare with, usually the dense one")
      ->group(basic(Group::kWhat))
      ->type_name("MODEL");
  add_protocol(*verb, options.protocol);
  add_evaluation_text(*verb, options.text);
  verb->add_option("--log-samples", options.log_samples,
                   "also write the answers to this file, one JSON object a question and line")
      ->group(advanced(Group::kOutput))
      ->type_name("FILE")
      ->needs(tasks);
  add_common(*verb, options.common, true);
  add_walk(*verb, options.common);
}

void define_compare(CLI::App& app, CompareRequest& options) {
  CLI::App* verb = app.add_subcommand("compare", "Several models in one table: size, perplexity, tasks, speed");
  add_model(*verb, options.common);
  verb->get_option("MODEL")->description("the model to compare with, usually the dense one");
  verb->add_option("OTHER", options.others, "models to compare with it")->type_name("MODEL")->required();
  add_tasks(*verb, options);
  verb->add_flag("--kl", options.kl, "also the divergence of every model from the first, as eval --against has it")
      ->group(basic(Group::kWhat));
  verb->add_flag("--no-speed", options.no_speed,
                 "leave out tokens/s, which take every model and the first in memory together")
      ->group(basic(Group::kWhat));
  add_protocol(*verb, options.protocol);
  add_speed(*verb, options, advanced(Group::kHowMuch));
  add_resampling(*verb, options);
  add_evaluation_text(*verb, options.text);
  verb->add_option("--csv", options.csv, "also write the figures to this file, one a line")
      ->group(basic(Group::kOutput))
      ->type_name("FILE");
  verb->add_option("--markdown", options.markdown, "also write the table to this file, as Markdown")
      ->group(basic(Group::kOutput))
      ->type_name("FILE");
  add_common(*verb, options.common, true);
  add_memory(*verb, options.common);
  verb->add_flag("--no-cache", options.no_cache, "neither use nor keep results of earlier runs")
      ->group(advanced(Group::kMachine));
}

void define_bench(CLI::App& app, BenchRequest& options) {
  CLI::App* verb = app.add_subcommand("bench", "How fast it is: tokens/s of reading a prompt and of writing tokens");
  add_model(*verb, options.common);
  verb->add_option("MORE", options.others,
                   "more models: all are in memory together and measured in turns, each with a row of its own")
      ->type_name("MODEL");
  verb->add_option("--against", options.against,
                   "a second model, usually the dense one: measured in turns with the first, and the ratio printed")
      ->group(basic(Group::kWhat))
      ->type_name("MODEL");
  CLI::Option* gemm = verb->add_flag("--gemm", options.gemm,
                                     "no model: the most that this machine reaches in matrix products, in seconds")
                          ->group(advanced(Group::kWhat));
  add_speed(*verb, options, basic(Group::kHowMuch));
  add_common(*verb, options.common, true);
  add_dry_run(*verb, options.common);
  gemm->excludes(verb->get_option("--dry-run"));
}

}  // namespace dynslice::cli
