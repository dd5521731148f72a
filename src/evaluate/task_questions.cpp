// From rows to questions: few-shot examples, prompts, and what is scored.
#include <algorithm>

#include "dynslice/evaluate/tasks.h"
#include "dynslice/support/error.h"
#include "dynslice/text/tokenizer/tokenizer_unicode.h"
#include "evaluate/python_random.h"
#include "evaluate/task_documents.h"

namespace dynslice {
namespace {

// The harness' defaults: fewshot_random_seed, target_delimiter and fewshot_delimiter.
constexpr uint32_t kExampleSeed = 1234;
constexpr const char* kTargetDelimiter = " ";
constexpr const char* kExampleDelimiter = "\n\n";

// A document with its answer, as few-shot examples are shown.
std::string shown_with_answer(const TaskDocument& document) {
  const auto gold = static_cast<size_t>(document.gold);
  const std::string& prompt = document.contexts.empty() ? document.text : document.contexts[gold];
  const std::string& answer = document.target.empty() ? document.choices[gold] : document.target;
  return prompt + kTargetDelimiter + answer + kExampleDelimiter;
}

// Chooses the examples of question after question.
class ExampleSampler {
 public:
  ExampleSampler(const TaskInfo& task, int64_t count, const DataRows& rows)
      : task_(task), count_(count), rows_(rows), random_(kExampleSeed), shown_(rows.rows.size()) {
    // The harness takes one more where it leaves out the question itself.
    const int64_t needed = count + (leaves_out_question() && !task.takes_first_examples ? 1 : 0);
    const auto available = static_cast<int64_t>(rows.rows.size());
    if (needed <= available) return;
    throw_error(ErrorKind::kUsage, "--num-fewshot ", count, ": ", task.name, " has only ", available, " rows in ",
                rows.path.string(), " to take examples from");
  }

  // All examples for one question, as text.
  std::string text_for(const DataRow& question) {
    std::string text;
    for (const size_t row : chosen_for(question)) text += shown(row);
    return text;
  }

 private:
  // So it is for tasks without a test split, where examples and questions come from splits that may share rows.
  bool leaves_out_question() const { return task_.questions.split != "test"; }

  std::vector<size_t> chosen_for(const DataRow& question) {
    std::vector<size_t> chosen;
    if (task_.takes_first_examples) {
      for (size_t row = 0; row < static_cast<size_t>(count_); ++row) chosen.push_back(row);
      return chosen;
    }
    const auto size = static_cast<int64_t>(rows_.rows.size());
    if (!leaves_out_question()) {
      for (const int64_t row : random_.sample(size, count_)) chosen.push_back(static_cast<size_t>(row));
      return chosen;
    }
    for (const int64_t row : random_.sample(size, count_ + 1)) {
      if (rows_.rows[static_cast<size_t>(row)].value != question.value) chosen.push_back(static_cast<size_t>(row));
    }
    if (chosen.size() < static_cast<size_t>(count_)) return chosen_among_others(question);
    chosen.resize(static_cast<size_t>(count_));
    return chosen;
  }

  // The question was drawn more than once: there are rows alike.
  std::vector<size_t> chosen_among_others(const DataRow& question) {
    std::vector<size_t> others, chosen;
    for (size_t row = 0; row < rows_.rows.size(); ++row) {
      if (rows_.rows[row].value != question.value) others.push_back(row);
    }
    if (others.size() < static_cast<size_t>(count_)) {
      throw_error(ErrorKind::kUsage, "--num-fewshot ", count_, ": too few rows of ", rows_.path.string(),
                  " differ from the question at ", question.where);
    }
    for (const int64_t place : random_.sample(static_cast<int64_t>(others.size()), count_))
      chosen.push_back(others[static_cast<size_t>(place)]);
    return chosen;
  }

  const std::string& shown(size_t row) {
    if (shown_[row].empty()) shown_[row] = shown_with_answer(read_document(task_.format, rows_.rows[row]));
    return shown_[row];
  }

  const TaskInfo& task_;
  int64_t count_;
  const DataRows& rows_;
  PythonRandom random_;
  std::vector<std::string> shown_;  // of the rows that were needed
};

Question make_question(const TaskInfo& task, const TaskDocument& document, const std::string& before) {
  Question question;
  question.gold = document.gold;
  if (document.contexts.empty()) question.contexts.push_back(before + document.text);
  for (const std::string& context : document.contexts) question.contexts.push_back(before + context);
  if (task.is_cloze()) {
    question.continuations.push_back(document.target);
    question.characters.push_back(count_characters(document.target));
  }
  for (const std::string& choice : document.choices) {
    question.continuations.push_back(kTargetDelimiter + (document.target.empty() ? choice : document.target));
    question.characters.push_back(count_characters(choice));
  }
  return question;
}

}  // namespace

TaskQuestions load_questions(const TaskInfo& task, const TaskSettings& settings, const std::filesystem::path& data_dir,
                             ProgressSink& progress) {
  TaskQuestions result;
  result.task = task;
  result.examples = settings.examples.value_or(task.default_examples);
  const DataRows rows = load_rows(task.questions, data_dir, progress);
  result.path = rows.path;
  result.sha256 = rows.sha256;
  const size_t all = rows.rows.size();
  const size_t count = settings.limit > 0 ? std::min(all, static_cast<size_t>(settings.limit)) : all;
  std::vector<TaskDocument> documents;  // all of them, before examples are downloaded
  for (size_t i = 0; i < count; ++i) documents.push_back(read_document(task.format, rows.rows[i]));
  std::optional<ExampleSampler> sampler;
  DataRows examples;
  if (result.examples > 0) {
    examples = load_rows(task.examples, data_dir, progress);
    result.examples_path = examples.path;
    result.examples_sha256 = examples.sha256;
    sampler.emplace(task, result.examples, examples);
  }
  for (size_t i = 0; i < count; ++i) {
    const std::string before = task.description + (sampler ? sampler->text_for(rows.rows[i]) : "");
    Question question = make_question(task, documents[i], before);
    question.id = documents[i].id.empty() ? std::to_string(i) : documents[i].id;
    question.where = rows.rows[i].where;
    result.questions.push_back(std::move(question));
  }
  return result;
}

std::vector<TaskQuestions> load_questions(const TaskSelection& selection, const TaskSettings& settings,
                                          const std::filesystem::path& data_dir, ProgressSink& progress) {
  std::vector<TaskQuestions> all;
  for (const TaskInfo& task : selection.tasks) all.push_back(load_questions(task, settings, data_dir, progress));
  return all;
}

}  // namespace dynslice
