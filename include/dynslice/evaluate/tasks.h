// Multiple-choice and cloze tasks, with the prompts, choices and whitespace of lm-evaluation-harness.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/support/progress.h"
#include "dynslice/text/datasets/data_rows.h"

namespace dynslice {

// The release whose task files were followed.
inline constexpr const char* kHarnessVersion = "lm-evaluation-harness 0.4.13";

// What a task's rows look like, and what is made of them.
enum class TaskFormat { kArc, kBoolq, kHellaswag, kLambada, kMmlu, kOpenbookqa, kPiqa, kSocialIqa, kWinogrande };

struct TaskInfo {
  std::string name;  // "arc_easy"
  TaskFormat format = TaskFormat::kArc;
  double version = 1;                 // the harness' own, of the task
  RowSource questions;                // of the split that is asked
  RowSource examples;                 // of the split that few-shot examples are taken from
  int64_t default_examples = 0;       // number of few-shot examples
  bool takes_first_examples = false;  // in order; otherwise they are drawn
  bool has_acc_norm = true;
  std::string description;  // in front of everything

  // lambada: there are no choices; the one answer is to be the likeliest, and perplexity is measured.
  [[nodiscard]] bool is_cloze() const { return format == TaskFormat::kLambada; }
};

// Tasks whose accuracies are averaged, every question counting the same.
struct TaskGroup {
  std::string name;  // "mmlu"
  double version = 2;
  std::vector<std::string> members;  // names of tasks
};

struct TaskSelection {
  std::vector<TaskInfo> tasks;        // each once
  std::vector<TaskGroup> groups;      // those that were named, and the groups within them
  std::vector<std::string> repeated;  // names that were given more than once

  // Whether the task is told of by a group.
  [[nodiscard]] bool is_of_group(const std::string& task) const;
};

// The tasks and groups of these names, in this order. Throws kUsage for an unknown name, suggesting the nearest ones.
[[nodiscard]] TaskSelection select_tasks(const std::vector<std::string>& names);

// All names that select_tasks knows, but for the members of groups.
[[nodiscard]] std::vector<std::string> task_names();

struct Question {
  std::string id;                          // as the data have it, else the row's number from 0 on
  std::string where;                       // "PATH: line 3"
  std::vector<std::string> contexts;       // one for all choices, or one for each
  std::vector<std::string> continuations;  // one a choice; of a cloze task the one
  std::vector<int64_t> characters;         // of every choice, by which acc_norm divides
  int64_t gold = 0;                        // the right choice

  [[nodiscard]] const std::string& context_of(size_t choice) const {
    return contexts[contexts.size() == 1 ? 0 : choice];
  }
};

struct TaskSettings {
  int64_t limit = 0;                // the first questions of every task; 0: all
  std::optional<int64_t> examples;  // few-shot ones; else the task's default
};

struct TaskQuestions {
  TaskInfo task;
  int64_t examples = 0;
  std::vector<Question> questions;
  std::filesystem::path path;  // of the questions
  std::string sha256;
  std::filesystem::path examples_path;  // empty without examples
  std::string examples_sha256;
};

// Reads the data and makes the questions. Few-shot examples are the ones that the harness takes with its default seed,
// 1234: another `limit` changes none of them. Throws as load_rows does; kBadInput with file and line for rows with
// missing fields, an empty choice, or a gold answer out of range; kUsage for more examples than there are.
[[nodiscard]] TaskQuestions load_questions(const TaskInfo& task, const TaskSettings& settings,
                                           const std::filesystem::path& data_dir, ProgressSink& progress);
// Those of every task of the selection.
[[nodiscard]] std::vector<TaskQuestions> load_questions(const TaskSelection& selection, const TaskSettings& settings,
                                                        const std::filesystem::path& data_dir, ProgressSink& progress);

}  // namespace dynslice
