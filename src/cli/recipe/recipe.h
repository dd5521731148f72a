// A recipe: the JSON file that names the steps of `dynslice run`. Its verbs and options are those of the command line,
// and every step is checked by parsing it as one, so that nothing is defined twice.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "cli/help/reference.h"

namespace dynslice::cli {

using OptionValues = std::vector<std::pair<std::string, std::string>>;  // "--avg", "25%"; flags have no value

struct RecipeStep {
  VerbReference verb;
  OptionValues options;  // in the order of the file

  bool has_option(const std::string& name) const;
  // Whether it gives a checkpoint, for the steps after it; others look at what is there.
  bool writes_checkpoint() const;
};

struct Recipe {
  std::filesystem::path file;
  std::string description;
  std::string model;  // when the command line names none; may be empty
  std::vector<RecipeStep> steps;
};

// Throws kMissingData without such a file; kBadInput, naming file and step, for anything that no step could begin with:
// verbs and options that do not exist, values that they do not take, a second slicing. `handed` as in step_words.
Recipe read_recipe(const std::filesystem::path& file, const OptionValues& handed);

// Options that take a second model may say MODEL: puts the model of the recipe in its place.
void name_model(Recipe& recipe, const std::string& model);

// The command line of a step, `program` first. Empty names are left out. Of `handed`, options for all steps, it gets
// those that its verb has; they take the place of its own.
std::vector<std::string> step_words(const RecipeStep& step, const std::string& program, const std::string& model,
                                    const std::string& output, const OptionValues& handed);

}  // namespace dynslice::cli
