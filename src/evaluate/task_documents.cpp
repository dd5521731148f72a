// What the rows of the data sets look like, and the texts that lm-evaluation-harness makes of them (the task files of
// the version in tasks.h, which say this in YAML and Jinja).
#include "evaluate/task_documents.h"

#include <algorithm>
#include <charconv>

#include "dynslice/support/error.h"
#include "dynslice/text/tokenizer/python_string.h"
#include "evaluate/python_text.h"

namespace dynslice {
namespace {

// A list of strings under a key.
std::vector<std::string> strings(const JsonReader& row, const std::string& key) {
  std::vector<std::string> texts;
  if (row.has(key) && row.raw()[key].is_array()) {
    for (const Json& item : row.raw()[key]) {
      if (!item.is_string()) row.fail(key, "a list of strings");
      texts.push_back(item.get<std::string>());
    }
    return texts;
  }
  row.fail(key, "a list of strings");
}

// Labels are integers, or such in a string, or false and true.
int64_t label(const JsonReader& row, const std::string& key) {
  if (row.has(key) && row.raw()[key].is_boolean()) return row.boolean(key) ? 1 : 0;
  if (!row.has(key) || !row.raw()[key].is_string()) return row.integer(key);
  const std::string text = row.string(key);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) row.fail(key, "an integer");
  return value;
}

std::string id_of(const JsonReader& row) {
  for (const char* key : {"id", "ind", "idx", "qID"}) {
    if (!row.has(key)) continue;
    const Json& value = row.raw()[key];
    if (value.is_string()) return value.get<std::string>();
    if (value.is_number_integer()) return std::to_string(value.get<int64_t>());
  }
  return "";
}

// A question with labelled choices: as Hugging Face has it, {"question", "choices": {"text", "label"}, "answerKey"}, or
// as AI2 publishes it, {"question": {"stem", "choices": [{"text", "label"}]}, "answerKey"}.
struct LabelledQuestion {
  std::string stem;
  std::vector<std::string> choices;
  int64_t gold = 0;
};

LabelledQuestion labelled_question(const JsonReader& row, const std::string& stem_key) {
  LabelledQuestion question;
  std::vector<std::string> labels;
  if (row.has("question") && row.raw()["question"].is_object()) {
    const JsonReader inner = row.object("question");
    question.stem = inner.string("stem");
    if (!inner.has("choices") || !inner.raw()["choices"].is_array()) inner.fail("choices", "a list of choices");
    for (const Json& item : inner.raw()["choices"]) {
      const JsonReader choice(item, inner.where() + ": choices");
      question.choices.push_back(choice.string("text"));
      labels.push_back(choice.string("label"));
    }
  } else {
    question.stem = row.string(stem_key);
    const JsonReader choices = row.object("choices");
    question.choices = strings(choices, "text");
    labels = strings(choices, "label");
    if (labels.size() != question.choices.size()) choices.fail("label", "as many labels as there are texts");
  }
  const std::string key = row.string("answerKey");
  const auto found =
      std::find(labels.begin(), labels.end(), key.substr(std::min(key.find_first_not_of(' '), key.size())));
  if (found == labels.end()) row.fail("answerKey", "one of the choices' labels");
  question.gold = found - labels.begin();
  return question;
}

TaskDocument read_arc(const JsonReader& row) {
  LabelledQuestion question = labelled_question(row, "question");
  TaskDocument document;
  document.text = "Question: " + question.stem + "\nAnswer:";
  document.choices = std::move(question.choices);
  document.gold = question.gold;
  return document;
}

TaskDocument read_openbookqa(const JsonReader& row) {
  LabelledQuestion question = labelled_question(row, "question_stem");
  TaskDocument document;
  document.text = std::move(question.stem);
  document.choices = std::move(question.choices);
  document.gold = question.gold;
  return document;
}

TaskDocument read_piqa(const JsonReader& row) {
  TaskDocument document;
  document.text = "Question: " + row.string("goal") + "\nAnswer:";
  document.choices = {row.string("sol1"), row.string("sol2")};
  document.gold = label(row, "label");
  return document;
}

TaskDocument read_boolq(const JsonReader& row) {
  TaskDocument document;
  document.text = row.string("passage") + "\nQuestion: " + row.string("question") + "?\nAnswer:";
  document.choices = {"no", "yes"};
  document.gold = label(row, "label");
  return document;
}

TaskDocument read_social_iqa(const JsonReader& row) {
  TaskDocument document;
  document.text = "Q: " + row.string("context") + " " + row.string("question") + "\nA:";
  document.choices = {row.string("answerA"), row.string("answerB"), row.string("answerC")};
  document.gold = label(row, "label") - 1;
  return document;
}

TaskDocument read_mmlu(const JsonReader& row) {
  const std::vector<std::string> choices = strings(row, "choices");
  if (choices.size() != 4) row.fail("choices", "four choices");
  TaskDocument document;
  document.text = std::string(python_strip(row.string("question"))) + "\nA. " + choices[0] + "\nB. " + choices[1] +
                  "\nC. " + choices[2] + "\nD. " + choices[3] + "\nAnswer:";
  document.choices = {"A", "B", "C", "D"};
  document.gold = label(row, "answer");
  return document;
}

// Without what stands between brackets on one line, as re.sub("\\[.*?\\]", "", text) leaves it.
std::string without_brackets(std::string_view text) {
  std::string left;
  while (!text.empty()) {
    if (text.front() == '[') {
      const size_t end = text.find_first_of("]\n");
      if (end != std::string_view::npos && text[end] == ']') {
        text.remove_prefix(end + 1);
        continue;
      }
    }
    left += text.front();
    text.remove_prefix(1);
  }
  return left;
}

// Brackets are left over from WikiHow.
std::string clean_hellaswag(const std::string& text) {
  return python::replace_text(without_brackets(python::replace_text(python_strip(text), " [title]", ". ")), "  ", " ");
}

TaskDocument read_hellaswag(const JsonReader& row) {
  TaskDocument document;
  document.text = clean_hellaswag(row.string("activity_label") + ": " + row.string("ctx_a") + " " +
                                  python_capitalize(row.string("ctx_b")));
  for (const std::string& ending : strings(row, "endings")) document.choices.push_back(clean_hellaswag(ending));
  document.gold = label(row, "label");
  return document;
}

TaskDocument read_winogrande(const JsonReader& row) {
  const std::string sentence = row.string("sentence");
  const size_t blank = sentence.find('_');
  if (blank == std::string::npos) row.fail("sentence", "a blank, \"_\", in it");
  TaskDocument document;
  for (const char* key : {"option1", "option2"}) {
    document.choices.push_back(row.string(key).empty() ? "" : sentence.substr(0, blank) + row.string(key));
  }
  document.contexts = document.choices;
  document.target = python_strip(std::string_view(sentence).substr(blank + 1));
  if (document.target.empty()) row.fail("sentence", "text behind the blank");
  document.gold = label(row, "answer") - 1;
  return document;
}

TaskDocument read_lambada(const JsonReader& row) {
  const std::string text = row.string("text");
  const size_t space = text.rfind(' ');
  TaskDocument document;
  document.text = space == std::string::npos ? "" : text.substr(0, space);
  document.target = " " + text.substr(space == std::string::npos ? 0 : space + 1);
  if (document.target.size() == 1) row.fail("text", "text that ends with a word");
  return document;
}

TaskDocument read(TaskFormat format, const JsonReader& row) {
  switch (format) {
    case TaskFormat::kArc:
      return read_arc(row);
    case TaskFormat::kBoolq:
      return read_boolq(row);
    case TaskFormat::kHellaswag:
      return read_hellaswag(row);
    case TaskFormat::kLambada:
      return read_lambada(row);
    case TaskFormat::kMmlu:
      return read_mmlu(row);
    case TaskFormat::kOpenbookqa:
      return read_openbookqa(row);
    case TaskFormat::kPiqa:
      return read_piqa(row);
    case TaskFormat::kSocialIqa:
      return read_social_iqa(row);
    case TaskFormat::kWinogrande:
      return read_winogrande(row);
  }
  return {};
}

}  // namespace

TaskDocument read_document(TaskFormat format, const DataRow& row) {
  const JsonReader reader(row.value, row.where);
  TaskDocument document = read(format, reader);
  document.id = id_of(reader);
  for (size_t i = 0; i < document.choices.size(); ++i) {
    if (document.choices[i].empty()) throw_error(ErrorKind::kBadInput, row.where, ": choice ", i + 1, " is empty");
  }
  const auto choices = static_cast<int64_t>(document.choices.size());
  if (format == TaskFormat::kLambada) return document;
  if (choices < 2) throw_error(ErrorKind::kBadInput, row.where, ": has ", choices, " choices; expected at least 2");
  if (document.gold < 0 || document.gold >= choices) {
    throw_error(ErrorKind::kBadInput, row.where, ": the right answer is choice ", document.gold + 1, ", but there are ",
                choices, " choices");
  }
  return document;
}

}  // namespace dynslice
