#include "cli/recipe/recipe_steps.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <sstream>

#include "cli/options/parse.h"
#include "cli/verbs/verbs.h"
#include "dynslice/checkpoint/checkpoint_writer.h"

namespace dynslice::cli {
namespace {

// Puts the number of threads back, which a step may have set.
class ThreadScope {
 public:
  ThreadScope() : threads_(at::get_num_threads()) {}
  ~ThreadScope() { at::set_num_threads(threads_); }
  ThreadScope(const ThreadScope&) = delete;
  ThreadScope& operator=(const ThreadScope&) = delete;

 private:
  int threads_;
};

std::string folder_name(const Step& step) {
  std::string name = std::to_string(step.number) + "-" + step.recipe->verb.name;
  std::replace(name.begin(), name.end(), ' ', '-');
  return name;
}

}  // namespace

std::filesystem::path steps_folder(const std::filesystem::path& out) {
  return CheckpointWriter::partial_folder(out).replace_extension(".steps");
}

std::vector<Step> plan_steps(const Recipe& recipe, const std::string& model, const std::filesystem::path& out) {
  size_t last = 0;
  for (size_t i = 0; i < recipe.steps.size(); ++i) {
    if (recipe.steps[i].writes_checkpoint()) last = i + 1;
  }
  std::vector<Step> steps;
  std::string current = model;
  bool on_original = true;
  for (const RecipeStep& one : recipe.steps) {
    Step step{&one, steps.size() + 1, {}, current, {}, false, on_original};
    step.title = "step " + std::to_string(step.number) + " of " + std::to_string(recipe.steps.size()) + " (" +
                 one.verb.name + ")";
    if (one.writes_checkpoint()) {
      step.is_last = step.number == last;
      step.output = step.is_last ? out : steps_folder(out) / folder_name(step);
      current = step.output.string();
      on_original = false;
    }
    steps.push_back(std::move(step));
  }
  return steps;
}

std::vector<std::string> words_of(const RunOptions& options, const Step& step) {
  return step_words(*step.recipe, options.common.command_line.front(), step.model, step.output.string(),
                    options.handed);
}

bool reads_file_of(const Step& step, const Step& earlier) {
  const auto reads = [&](const std::string& file) {
    return std::any_of(step.recipe->options.begin(), step.recipe->options.end(),
                       [&](const auto& option) { return option.second == file; });
  };
  return std::any_of(earlier.recipe->options.begin(), earlier.recipe->options.end(),
                     [&](const auto& option) { return option.first == "--output" && reads(option.second); });
}

std::string run_step(const RunOptions& options, const Recipe& recipe, const Step& step, const Switches& switches,
                     TerminalProgress& progress) {
  Command command = parse_words(words_of(options, step));
  const ThreadScope scope;
  std::ostringstream out;
  std::visit(
      [&](auto& parsed) {
        CommonOptions& common = parsed.common;
        common.json = options.common.json;
        common.quiet = options.common.quiet;
        common.verbose = options.common.verbose;
        common.resume = switches.resume;
        common.force = switches.force;
        common.dry_run = switches.dry_run;
        common.rehearsal = switches.rehearsal;
        common.recipe = RecipePlace{recipe.file.string(), recipe.description, step.number, recipe.steps.size(),
                                    options.common.command_line};
        cli::run(parsed, progress, out);
      },
      command);
  return out.str();
}

}  // namespace dynslice::cli
