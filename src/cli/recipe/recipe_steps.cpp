#include "cli/recipe/recipe_steps.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <sstream>

#include "cli/log/log.h"
#include "cli/options/parse.h"
#include "cli/verbs/verbs.h"
#include "dynslice/jobs/journaling.h"

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

// Whether it reads a file that `earlier` writes, such as scores.
bool reads_file_of(const RecipeStep& step, const RecipeStep& earlier) {
  const auto reads = [&](const std::string& file) {
    return std::any_of(step.options.begin(), step.options.end(),
                       [&](const auto& option) { return option.second == file; });
  };
  return std::any_of(earlier.options.begin(), earlier.options.end(),
                     [&](const auto& option) { return option.first == "--output" && reads(option.second); });
}

std::string run_command(const RunOptions& options, const Recipe& recipe, const Step& step, const StepSwitches& switches,
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

}  // namespace

std::vector<Step> plan_steps(const Recipe& recipe, const std::string& model, const std::filesystem::path& out) {
  size_t last = 0;
  for (size_t i = 0; i < recipe.steps.size(); ++i) {
    if (recipe.steps[i].writes_checkpoint()) last = i + 1;
  }
  std::vector<Step> steps;
  std::string current = model;
  bool on_original = true;
  for (const RecipeStep& one : recipe.steps) {
    Step step{&one, steps.size() + 1, {}, model, current, {}, false, on_original};
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

JobStep job_of(const RunOptions& options, const Recipe& recipe, const Step& step, TerminalProgress& progress) {
  const auto& steps = recipe.steps;
  const RecipeStep& own = *step.recipe;
  const bool waits = std::any_of(steps.begin(), steps.begin() + static_cast<int64_t>(step.number) - 1,
                                 [&](const RecipeStep& earlier) { return reads_file_of(own, earlier); });
  JobStep job;
  job.title = step.title;
  job.verb = own.verb.name;
  job.command_line = words_of(options, step);
  job.job = shell_line(step_words(own, "dynslice", "", step.output.string(), {}));
  job.output = step.output;
  job.is_last = step.is_last;
  job.has_journal = own.has_option("--resume");
  job.can_rehearse = own.has_option("--dry-run") && !waits;
  Step on_original = step;
  on_original.model = step.original;
  job.run = [&options, &recipe, &progress, step, on_original](const StepSwitches& switches) {
    if (!switches.rehearsal)
      return run_command(options, recipe, switches.dry_run ? on_original : step, switches, progress);
    const MutedLog muted;
    TerminalProgress quiet(true);
    return run_command(options, recipe, on_original, switches, quiet);
  };
  return job;
}

}  // namespace dynslice::cli
