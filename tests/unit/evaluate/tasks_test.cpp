#include "dynslice/evaluate/tasks.h"

#include <gtest/gtest.h>

#include "unit/support/error_matchers.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

using testing::expect_error;

// A data folder into which tests write rows.
class Tasks : public ::testing::Test {
 protected:
  void write(const std::string& name, const std::string& lines) {
    std::filesystem::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name) << lines;
  }

  TaskQuestions load(const std::string& name, const TaskSettings& settings = {}) {
    return load_questions(select_tasks({name}).tasks.front(), settings, folder_.path(), no_progress());
  }

  void expect_bad(const std::string& task, const std::string& file, const std::string& lines,
                  const std::vector<std::string>& parts) {
    write(file, lines);
    std::vector<std::string> all = parts;
    all.push_back(file + ": line ");
    expect_error(ErrorKind::kBadInput, all, [&] { load(task); });
  }

  testing::TemporaryFolder folder_;
};

using Texts = std::vector<std::string>;

TEST_F(Tasks, ArcReadsAi2sRowsAndHuggingFaces) {
  write("arc/ARC-Easy-Test.jsonl",
        R"({"id": "X1", "question": {"stem": "Why?", "choices": [{"text": "so", "label": "1"},)"
        R"( {"text": "not so", "label": "2"}]},)"
        R"( "answerKey": "2"})");
  write("arc_challenge/test.jsonl",
        R"({"id": "X1", "question": "Why?", "choices": {"text": ["so", "not so"], "label": ["A", "B"]},)"
        R"( "answerKey": "B"})");
  for (const char* name : {"arc_easy", "arc_challenge"}) {
    const Question question = load(name).questions.at(0);
    EXPECT_EQ(question.id, "X1");
    EXPECT_EQ(question.contexts, (Texts{"Question: Why?\nAnswer:"}));
    EXPECT_EQ(question.continuations, (Texts{" so", " not so"}));
    EXPECT_EQ(question.characters, (std::vector<int64_t>{2, 6}));
    EXPECT_EQ(question.gold, 1);
  }
}

TEST_F(Tasks, PiqaTakesLabelsFromTheFileBesideItOrFromTheRows) {
  write("piqa/valid.jsonl", R"({"goal": "open it", "sol1": "pull ", "sol2": "push é"})"
                            "\n"
                            R"({"goal": "g", "sol1": "a", "sol2": "b"})"
                            "\n");
  write("piqa/valid-labels.lst", "1\n0\n");
  const TaskQuestions task = load("piqa");
  ASSERT_EQ(task.questions.size(), 2U);
  EXPECT_EQ(task.questions[0].continuations, (Texts{" pull ", " push é"}));
  EXPECT_EQ(task.questions[0].characters, (std::vector<int64_t>{5, 6}));
  EXPECT_EQ(task.questions[0].gold, 1);
  EXPECT_EQ(task.questions[1].gold, 0);
  EXPECT_EQ(task.questions[1].id, "1");
  EXPECT_TRUE(task.task.has_acc_norm);
  std::filesystem::remove_all(folder_ / "piqa");
  write("piqa/validation.jsonl", R"({"goal": "g", "sol1": "a", "sol2": "b", "label": 1})");
  EXPECT_EQ(load("piqa").questions.at(0).gold, 1);
}

TEST_F(Tasks, HellaswagCleansItsTexts) {
  write("hellaswag/validation.jsonl",
        R"({"ind": 24, "activity_label": "Roof", "ctx_a": "A man [title] sits.", "ctx_b": "he STARTS",)"
        R"( "endings": [" goes [step]  up.", "x"], "label": "0"})");
  const Question question = load("hellaswag").questions.at(0);
  EXPECT_EQ(question.contexts, (Texts{"Roof: A man. sits. He starts"}));
  EXPECT_EQ(question.continuations, (Texts{" goes  up.", " x"}));
  EXPECT_EQ(question.id, "24");
}

TEST_F(Tasks, WinograndeHasAContextOfItsOwnForEveryChoice) {
  write("winogrande/validation.jsonl",
        R"({"sentence": "Ann met Bea, so _ smiled at her .", "option1": "Ann", "option2": "Bea", "answer": "2"})");
  const Question question = load("winogrande").questions.at(0);
  EXPECT_EQ(question.contexts, (Texts{"Ann met Bea, so Ann", "Ann met Bea, so Bea"}));
  EXPECT_EQ(question.continuations, (Texts{" smiled at her .", " smiled at her ."}));
  EXPECT_EQ(question.gold, 1);
}

TEST_F(Tasks, OthersAreAskedAsTheHarnessAsks) {
  write("boolq/validation.jsonl", R"({"passage": "P.", "question": "is it", "idx": 3, "label": 1})");
  EXPECT_EQ(load("boolq").questions.at(0).contexts, (Texts{"P.\nQuestion: is it?\nAnswer:"}));
  EXPECT_EQ(load("boolq").questions.at(0).continuations, (Texts{" no", " yes"}));
  EXPECT_EQ(load("boolq").task.version, 2);
  write("openbookqa/test.jsonl",
        R"({"id": "7", "question_stem": "The sun", "choices": {"text": ["is", "was"], "label": ["A", "B"]},)"
        R"( "answerKey": "A"})");
  EXPECT_EQ(load("openbookqa").questions.at(0).contexts, (Texts{"The sun"}));
  write("social_iqa/validation.jsonl",
        R"({"context": "C.", "question": "Q?", "answerA": "a", "answerB": "b", "answerC": "c", "label": "3"})");
  EXPECT_EQ(load("social_iqa").questions.at(0).contexts, (Texts{"Q: C. Q?\nA:"}));
  EXPECT_EQ(load("social_iqa").questions.at(0).gold, 2);
  write("lambada_openai/test.jsonl", R"({"text": "he said \"no\" to  Ann"})");
  EXPECT_EQ(load("lambada_openai").questions.at(0).contexts, (Texts{"he said \"no\" to "}));
  EXPECT_EQ(load("lambada_openai").questions.at(0).continuations, (Texts{" Ann"}));
}

TEST_F(Tasks, MmluIsAskedAfterTheFirstExamples) {
  write("mmlu/anatomy/test.jsonl",
        R"({"question": " Which? ", "choices": ["a", "b", "c", "d"], "answer": 2, "subject": "anatomy"})");
  std::string examples;
  for (int i = 0; i < 6; ++i) {
    examples += R"({"question": "E)" + std::to_string(i) + R"(", "choices": ["a", "b", "c", "d"], "answer": )" +
                std::to_string(i % 4) + "}\n";
  }
  write("mmlu/anatomy/dev.jsonl", examples);
  const std::string header = "The following are multiple choice questions (with answers) about anatomy.\n\n";
  const std::string asked = "Which?\nA. a\nB. b\nC. c\nD. d\nAnswer:";
  EXPECT_EQ(load("mmlu_anatomy", {0, 0}).questions.at(0).contexts, (Texts{header + asked}));
  EXPECT_EQ(
      load("mmlu_anatomy", {0, 2}).questions.at(0).contexts,
      (Texts{header + "E0\nA. a\nB. b\nC. c\nD. d\nAnswer: A\n\nE1\nA. a\nB. b\nC. c\nD. d\nAnswer: B\n\n" + asked}));
  EXPECT_EQ(load("mmlu_anatomy").examples, 5);
  EXPECT_EQ(load("mmlu_anatomy").questions.at(0).continuations, (Texts{" A", " B", " C", " D"}));
  expect_error(ErrorKind::kUsage, {"--num-fewshot 7", "only 6 rows"}, [&] { load("mmlu_anatomy", {0, 7}); });
}

TEST_F(Tasks, ALimitTakesTheFirstQuestionsWithTheSameExamples) {
  std::string lines, examples;
  for (int i = 0; i < 40; ++i) {
    const auto row = [&](const std::string& text) {
      return R"({"goal": ")" + text + std::to_string(i) + R"(", "sol1": "a", "sol2": "b", "label": 0})" + "\n";
    };
    lines += row("q");
    examples += row(i % 2 == 0 ? "q" : "e");  // half of them are questions too
  }
  write("piqa/validation.jsonl", lines);
  write("piqa/train.jsonl", examples);
  const TaskQuestions all = load("piqa", {0, 3}), some = load("piqa", {7, 3});
  ASSERT_EQ(some.questions.size(), 7U);
  for (size_t i = 0; i < 7; ++i) EXPECT_EQ(some.questions[i].contexts, all.questions[i].contexts);
  EXPECT_NE(all.questions[0].contexts, all.questions[1].contexts);
  for (size_t i = 0; i < 40; ++i) {  // no question is its own example
    const std::string& context = all.questions[i].contexts.front();
    const std::string own = "Question: q" + std::to_string(i) + "\nAnswer:";
    EXPECT_EQ(context.find(own), context.size() - own.size());
  }
}

TEST_F(Tasks, NameFileAndLineOfWhatIsWrong) {
  const std::string good = R"({"goal": "g", "sol1": "a", "sol2": "b", "label": 1})"
                           "\n\n";
  expect_bad("piqa", "piqa/validation.jsonl", good + R"({"goal": "g", "sol1": "a", "label": 1})",
             {"line 3", "sol2", "missing"});
  expect_bad("piqa", "piqa/validation.jsonl", good + R"({"goal": "g", "sol1": "", "sol2": "b", "label": 1})",
             {"line 3", "choice 1 is empty"});
  expect_bad("piqa", "piqa/validation.jsonl", good + R"({"goal": "g", "sol1": "a", "sol2": "b", "label": 2})",
             {"line 3", "choice 3", "2 choices"});
  expect_bad("piqa", "piqa/validation.jsonl", good + R"({"goal": "g", "sol1": "a", "sol2": "b", "label": "one"})",
             {"line 3", "label"});
  expect_bad("piqa", "piqa/validation.jsonl", good + R"(["goal"])", {"line 3", "object"});
  expect_bad("piqa", "piqa/validation.jsonl", good + "{", {"line 3"});
  expect_bad("arc_easy", "arc_easy/test.jsonl",
             R"({"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"})",
             {"line 1", "answerKey"});
  expect_bad("arc_easy", "arc_easy/test.jsonl",
             R"({"question": "q", "choices": {"text": ["a", "b"], "label": ["A"]}, "answerKey": "A"})",
             {"line 1", "label"});
  expect_bad("arc_easy", "arc_easy/test.jsonl", R"({"question": {"choices": []}, "answerKey": "A"})",
             {"line 1", "stem"});
  expect_bad("winogrande", "winogrande/validation.jsonl",
             R"({"sentence": "no blank", "option1": "a", "option2": "b", "answer": "1"})", {"line 1", "sentence"});
  expect_bad("mmlu_anatomy", "mmlu/anatomy/test.jsonl", R"({"question": "q", "choices": ["a", "b", "c"], "answer": 0})",
             {"line 1", "four choices"});
  write("piqa/validation.jsonl", "\n");
  expect_error(ErrorKind::kBadInput, {"validation.jsonl", "no rows"}, [&] { load("piqa"); });
}

TEST_F(Tasks, RefuseLabelsThatDoNotFit) {
  write("piqa/valid.jsonl", R"({"goal": "g", "sol1": "a", "sol2": "b"})"
                            "\n");
  write("piqa/valid-labels.lst", "0\n1\n");
  expect_error(ErrorKind::kBadInput, {"valid-labels.lst", "2 labels", "1 rows"}, [&] { load("piqa"); });
  write("piqa/valid-labels.lst", "x\n");
  expect_error(ErrorKind::kBadInput, {"valid-labels.lst: line 1", "integer"}, [&] { load("piqa"); });
}

TEST(TaskSelection, SuggestsTheNearestNames) {
  expect_error(ErrorKind::kUsage, {"--tasks arc", "arc_easy", "arc_challenge"}, [] { select_tasks({"arc"}); });
  expect_error(ErrorKind::kUsage, {"did you mean hellaswag?"}, [] { select_tasks({"piqa", "helaswag"}); });
  expect_error(ErrorKind::kUsage, {"mmlu_anatomy"}, [] { select_tasks({"mmlu_anatomie"}); });
  expect_error(ErrorKind::kUsage, {"known are piqa, "}, [] { select_tasks({"xyzzy-plugh-and-more"}); });
}

TEST(TaskSelection, TakesEveryTaskOnce) {
  const TaskSelection selection = select_tasks({"mmlu_stem", "piqa", "mmlu", "piqa", "mmlu_anatomy"});
  EXPECT_EQ(selection.tasks.size(), 58U);
  EXPECT_EQ(selection.tasks[19].name, "piqa");
  EXPECT_EQ(selection.repeated, (std::vector<std::string>{"piqa"}));
  ASSERT_EQ(selection.groups.size(), 5U);
  EXPECT_EQ(selection.groups[1].name, "mmlu");
  EXPECT_EQ(selection.groups[1].members.size(), 57U);
}

}  // namespace
}  // namespace dynslice
