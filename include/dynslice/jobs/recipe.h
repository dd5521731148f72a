// The pipeline of `run`: steps one after the other, each on what the ones before it made. What a step does is the
// caller's: on the command line it is a verb.
//
// 1. A wrong option of the last step is found before the first begins: all are rehearsed on the original model.
// 2. A run that is stopped goes on with the step that it was stopped in; steps that are done are not done again.
// 3. Only the last checkpoint, and with `keep_steps` those between the steps, is left behind.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/jobs/requests.h"
#include "dynslice/model/checkpoint.h"
#include "dynslice/support/json.h"

namespace dynslice {

struct StepSwitches {
  bool resume = false;
  bool force = false;
  bool dry_run = false;    // then on the original model, as what the steps before would make does not exist yet
  bool rehearsal = false;  // a dry run of which nobody reads a word
};

struct JobStep {
  std::string title;  // "step 2 of 3 (slice)"
  std::string verb;
  std::vector<std::string> command_line;  // the program first
  std::string job;                        // what decides its result, besides what decides that of all steps
  std::filesystem::path output;           // of the checkpoint that it writes; empty: it writes none
  bool is_last = false;                   // of those that write one
  bool has_journal = false;               // it can go on where it was stopped
  bool can_rehearse = false;              // it has dry runs, and reads no file that a step before it writes
  // Does the step and gives what it printed: JSON where the request asks for that. Throws Error.
  std::function<std::string(const StepSwitches&)> run;

  [[nodiscard]] bool writes() const { return !output.empty(); }
};

struct RecipeRequest {
  CommonOptions common;
  std::string recipe;            // as messages name it
  std::filesystem::path output;  // of the last step that writes a checkpoint
  std::vector<JobStep> steps;
  bool keep_steps = false;                                              // leave the checkpoints between the steps
  std::function<void(const JobStep&)> on_step = [](const JobStep&) {};  // it begins
  std::function<void(const std::string&)> on_text = [](const std::string&) {};  // what the step printed
};

struct RecipeResult {
  OrderedJson model;                     // as describe_run has it
  OrderedJson results;                   // of every step: "verb", "command_line", "result"
  std::optional<OrderedJson> own_steps;  // what the record of `output` says of the steps that wrote a checkpoint
  double seconds = 0;                    // with those of the run that was stopped
  uint64_t peak_bytes = 0;
};

// The folder beside `out` for checkpoints between the steps and the journal: OUT.steps.
[[nodiscard]] std::filesystem::path steps_folder(const std::filesystem::path& out);

// Throws kUsage for a checkpoint in the way, and when a step was done by a run that asked for something else; what a
// step throws comes with its title and how to go on.
[[nodiscard]] RecipeResult run(const RecipeRequest& request, const Checkpoint& original);

}  // namespace dynslice
