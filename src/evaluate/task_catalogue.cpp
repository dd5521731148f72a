// The tasks there are, where their data lie, and how they are found by name.
#include <algorithm>
#include <array>
#include <numeric>
#include <set>
#include <sstream>

#include "dynslice/evaluate/tasks.h"
#include "dynslice/support/error.h"

namespace dynslice {
namespace {

constexpr const char* kMmlu = "mmlu";

struct SubjectArea {
  const char* name;
  const char* subjects;
};

// The 57 subjects in the order in which the harness reports them.
constexpr std::array<SubjectArea, 4> kAreas{{
    {"mmlu_stem",
     "abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science "
     "college_mathematics "
     "college_physics computer_security conceptual_physics electrical_engineering elementary_mathematics "
     "high_school_biology high_school_chemistry high_school_computer_science high_school_mathematics "
     "high_school_physics "
     "high_school_statistics machine_learning"},
    {"mmlu_other",
     "business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing "
     "medical_genetics "
     "miscellaneous nutrition professional_accounting professional_medicine virology"},
    {"mmlu_social_sciences",
     "econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics "
     "high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations "
     "security_studies sociology us_foreign_policy"},
    {"mmlu_humanities",
     "formal_logic high_school_european_history high_school_us_history high_school_world_history international_law "
     "jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory professional_law "
     "world_religions"},
}};

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

// A task of its own data set; `split` is asked, examples come from the training split.
struct PlainTask {
  const char* name;
  TaskFormat format;
  double version;
  bool has_acc_norm;
  const char* dataset;
  const char* config;
  const char* split;
  const char* examples;
};

constexpr std::array<PlainTask, 9> kPlainTasks{{
    {"piqa", TaskFormat::kPiqa, 1, true, "baber/piqa", "default", "validation", "train"},
    {"arc_easy", TaskFormat::kArc, 1, true, "allenai/ai2_arc", "ARC-Easy", "test", "train"},
    {"arc_challenge", TaskFormat::kArc, 1, true, "allenai/ai2_arc", "ARC-Challenge", "test", "train"},
    {"hellaswag", TaskFormat::kHellaswag, 1, true, "Rowan/hellaswag", "default", "validation", "train"},
    {"winogrande", TaskFormat::kWinogrande, 1, false, "allenai/winogrande", "winogrande_xl", "validation", "train"},
    {"boolq", TaskFormat::kBoolq, 2, false, "aps/super_glue", "boolq", "validation", "train"},
    {"openbookqa", TaskFormat::kOpenbookqa, 1, true, "allenai/openbookqa", "main", "test", "train"},
    {"social_iqa", TaskFormat::kSocialIqa, 0, false, "lighteval/siqa", "default", "validation", "train"},
    {"lambada_openai", TaskFormat::kLambada, 1, false, "EleutherAI/lambada_openai", "default", "test", "test"},
}};

// Names under which the data sets are published, beside Hugging Face's rows at TASK/SPLIT.jsonl.
std::vector<std::string> published_files(const std::string& task, const std::string& split) {
  if (task == "arc_easy" || task == "arc_challenge") {
    const std::string name = task == "arc_easy" ? "ARC-Easy" : "ARC-Challenge";
    const std::string file = name + (split == "train" ? "-Train.jsonl" : "-Test.jsonl");
    return {"arc/" + file, file};
  }
  if (task == "piqa") return {split == "train" ? "piqa/train.jsonl" : "piqa/valid.jsonl"};
  return {};
}

RowSource source_of(const PlainTask& task, const std::string& split) {
  const std::string name = task.name;
  RowSource source{name + " (" + split + ")", published_files(name, split), task.dataset, task.config, split};
  const std::string rows = name + "/" + split + ".jsonl";
  if (std::find(source.files.begin(), source.files.end(), rows) == source.files.end()) source.files.push_back(rows);
  return source;
}

TaskInfo plain_task(const PlainTask& task) {
  TaskInfo info;
  info.name = task.name;
  info.format = task.format;
  info.version = task.version;
  info.questions = source_of(task, task.split);
  info.examples = source_of(task, task.examples);
  info.has_acc_norm = task.has_acc_norm;
  return info;
}

TaskInfo mmlu_task(const std::string& subject) {
  const auto source = [&](const std::string& split) {
    return RowSource{"mmlu " + subject + " (" + split + ")",
                     {"mmlu/" + subject + "/" + split + ".jsonl"},
                     "cais/mmlu",
                     subject,
                     split};
  };
  TaskInfo info;
  info.name = "mmlu_" + subject;
  info.format = TaskFormat::kMmlu;
  info.questions = source("test");
  info.examples = source("dev");
  info.default_examples = 5;  // as everybody reports it; the harness' own default is 0
  info.takes_first_examples = true;
  info.has_acc_norm = false;
  std::string spoken = subject;
  std::replace(spoken.begin(), spoken.end(), '_', ' ');
  info.description = "The following are multiple choice questions (with answers) about " + spoken + ".\n\n";
  return info;
}

// Adds the tasks and groups of names, each once.
class Selector {
 public:
  void add(const std::string& name) {
    if (!named_.insert(name).second) {
      selection_.repeated.push_back(name);
      return;
    }
    for (const PlainTask& task : kPlainTasks) {
      if (name == task.name) return add_task(plain_task(task));
    }
    if (name == kMmlu) return add_mmlu();
    for (const SubjectArea& area : kAreas) {
      if (name == area.name) return add_area(area);
      for (const std::string& subject : words_of(area.subjects)) {
        if (name == "mmlu_" + subject) return add_task(mmlu_task(subject));
      }
    }
    throw_unknown(name);
  }

  TaskSelection selection() && { return std::move(selection_); }

 private:
  void add_task(TaskInfo task) {
    const auto has_name = [&](const TaskInfo& one) { return one.name == task.name; };
    if (std::none_of(selection_.tasks.begin(), selection_.tasks.end(), has_name))
      selection_.tasks.push_back(std::move(task));
  }

  void add_group(TaskGroup group) {
    const auto has_name = [&](const TaskGroup& one) { return one.name == group.name; };
    if (std::none_of(selection_.groups.begin(), selection_.groups.end(), has_name))
      selection_.groups.push_back(std::move(group));
  }

  void add_area(const SubjectArea& area) {
    TaskGroup group{area.name, 2, {}};
    for (const std::string& subject : words_of(area.subjects)) {
      group.members.push_back("mmlu_" + subject);
      add_task(mmlu_task(subject));
    }
    add_group(std::move(group));
  }

  void add_mmlu() {
    TaskGroup all{kMmlu, 2, {}};
    for (const SubjectArea& area : kAreas) {
      for (const std::string& subject : words_of(area.subjects)) all.members.push_back("mmlu_" + subject);
    }
    add_group(std::move(all));
    for (const SubjectArea& area : kAreas) add_area(area);
  }

  [[noreturn]] static void throw_unknown(const std::string& name);

  TaskSelection selection_;
  std::set<std::string> named_;
};

// Levenshtein's distance.
size_t edits_between(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0]++;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j + 1] + 1, row[j] + 1});
    }
  }
  return row.back();
}

std::vector<std::string> all_names() {
  std::vector<std::string> names = task_names();
  for (const SubjectArea& area : kAreas) {
    names.emplace_back(area.name);
    for (const std::string& subject : words_of(area.subjects)) names.push_back("mmlu_" + subject);
  }
  return names;
}

void Selector::throw_unknown(const std::string& name) {
  constexpr size_t kLongestName = 64;
  std::vector<std::pair<size_t, std::string>> near;
  for (const std::string& known : all_names()) {
    // A part of the name ("arc", "lambada") is as good as a slip of the pen.
    const bool is_part = name.size() >= 3 && known.find(name) != std::string::npos;
    const size_t edits = is_part ? 1 : edits_between(name.substr(0, kLongestName), known);
    if (edits <= std::max<size_t>(2, known.size() / 3)) near.emplace_back(edits, known);
  }
  std::stable_sort(near.begin(), near.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  if (near.size() > 3) near.resize(3);
  std::string hint;
  for (const auto& [edits, known] : near) hint += (hint.empty() ? "did you mean " : " or ") + known;
  std::string known;
  for (const std::string& one : task_names()) known += (known.empty() ? "" : ", ") + one;
  throw_error(ErrorKind::kUsage, "--tasks ", name, ": no such task; ",
              hint.empty() ? "known are " + known : hint + "?");
}

}  // namespace

std::vector<std::string> task_names() {
  std::vector<std::string> names;
  for (const PlainTask& task : kPlainTasks) names.emplace_back(task.name);
  names.emplace_back(kMmlu);
  return names;
}

bool TaskSelection::is_of_group(const std::string& task) const {
  return std::any_of(groups.begin(), groups.end(), [&](const TaskGroup& group) {
    return std::find(group.members.begin(), group.members.end(), task) != group.members.end();
  });
}

TaskSelection select_tasks(const std::vector<std::string>& names) {
  Selector selector;
  for (const std::string& name : names) selector.add(name);
  return std::move(selector).selection();
}

}  // namespace dynslice
