// The steps of a recipe in their places: what each works on, where it writes, and how its command is run.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "cli/options/options.h"
#include "cli/recipe/recipe.h"
#include "cli/show/terminal.h"
#include "dynslice/jobs/recipe.h"

namespace dynslice::cli {

struct Step {
  const RecipeStep* recipe = nullptr;
  size_t number = 0;             // from 1 on
  std::string title;             // "step 2 of 3 (slice)"
  std::string original;          // the model of the first step; empty for the default model
  std::string model;             // what it works on
  std::filesystem::path output;  // of the checkpoint that it writes; empty: it writes none
  bool is_last = false;          // of those that write one
  bool on_original = true;       // no step before it writes one

  bool writes() const { return !output.empty(); }
};

// The last step that writes a checkpoint writes `out`, those before it OUT.steps/1-depth-merge and so on. The steps
// point into `recipe`.
std::vector<Step> plan_steps(const Recipe& recipe, const std::string& model, const std::filesystem::path& out);

// The command line of a step; that of `run` gives it the program's name and the options for all steps.
std::vector<std::string> words_of(const RunOptions& options, const Step& step);

// What is run of a step: its verb's command, parsed as one types it. `options`, `recipe` and `progress` have to live as
// long.
JobStep job_of(const RunOptions& options, const Recipe& recipe, const Step& step, TerminalProgress& progress);

}  // namespace dynslice::cli
