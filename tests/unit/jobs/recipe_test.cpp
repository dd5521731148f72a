#include "dynslice/jobs/recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/support/error.h"
#include "unit/jobs/model_folder.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using ::testing::ElementsAre;
using testing::expect_error;
using testing::ModelFolder;
using ::testing::Not;

// Two steps that write a checkpoint and one that looks at it. What they are asked for is noted in `calls`.
class RecipeJob : public ::testing::Test {
 protected:
  RecipeJob() {
    request.common = folder.common("run");
    request.recipe = "recipe.json";
    request.output = folder / "out";
    request.steps = {writer("slice", steps_folder(request.output) / "1-slice", false),
                     writer("heal", request.output, true), reader("eval")};
    for (size_t i = 0; i < request.steps.size(); ++i)
      request.steps[i].title = "step " + std::to_string(i + 1) + " of 3 (" + request.steps[i].verb + ")";
    request.on_text = [this](const std::string& text) { printed += text; };
  }

  JobStep reader(const std::string& verb) {
    JobStep step;
    step.verb = verb;
    step.command_line = {"dynslice", verb};
    step.job = "dynslice " + verb;
    step.can_rehearse = step.has_journal = true;
    step.run = [this, verb](const StepSwitches& switches) {
      calls.push_back(verb + (switches.rehearsal ? " rehearsed" : "") + (switches.resume ? " resumed" : "") +
                      (switches.force ? " by force" : ""));
      if (on_call) on_call(calls.back());
      return request.common.json ? R"({"of": ")" + verb + R"("})" : verb + " was done\n";
    };
    return step;
  }

  JobStep writer(const std::string& verb, const std::filesystem::path& output, bool is_last) {
    JobStep step = reader(verb);
    step.output = output;
    step.is_last = is_last;
    step.run = [work = step.run, output, verb](const StepSwitches& switches) {
      const std::string text = work(switches);
      if (switches.dry_run) return text;
      std::filesystem::create_directories(output);
      const OrderedJson record = {{"method", verb},
                                  {"run", {{"command_line", {"dynslice", verb}}}},
                                  {"parameters", {{"before", 100}, {"after", 80}}}};
      testing::write_bytes(output / "dynslice.json", record.dump());
      return text;
    };
    return step;
  }

  RecipeResult run() { return dynslice::run(request, *open_checkpoint(request.common.model)); }

  ModelFolder folder;
  RecipeRequest request;
  std::vector<std::string> calls;
  std::string printed;
  std::function<void(const std::string&)> on_call;
};

TEST_F(RecipeJob, RehearsesAllStepsAndThenTakesThemInOrder) {
  const RecipeResult result = run();
  EXPECT_THAT(calls, ElementsAre("slice rehearsed by force", "heal rehearsed", "eval rehearsed by force",
                                 "slice by force", "heal", "eval by force"));
  EXPECT_EQ(printed, "slice was done\nheal was done\neval was done\n");
  EXPECT_EQ(result.results.size(), 3U);
  EXPECT_EQ(result.results[1].at("verb"), "heal");
  EXPECT_THAT(folder.names(), ElementsAre("model", "out", "text.txt"));  // nothing of what was between the steps
}

TEST_F(RecipeJob, LeavesTheCheckpointsBetweenTheStepsWhereThatIsAsked) {
  request.keep_steps = true;
  run();
  EXPECT_TRUE(std::filesystem::exists(steps_folder(request.output) / "1-slice" / "dynslice.json"));
}

TEST_F(RecipeJob, SaysWhatTheRecordTellsOfItsOwnSteps) {
  const RecipeResult result = run();
  ASSERT_TRUE(result.own_steps);
  EXPECT_EQ(result.own_steps->front().at("method"), "heal");
  EXPECT_EQ(result.model, request.common.model);
}

TEST_F(RecipeJob, DoesNotBeginWhereALaterStepCouldNot) {
  on_call = [](const std::string& call) {
    if (call == "heal rehearsed") throw Error(ErrorKind::kBadInput, "no text");
  };
  expect_error(ErrorKind::kBadInput, {"step 2 of 3 (heal): no text"}, [&] { run(); });
  EXPECT_THAT(calls, Not(::testing::Contains("slice by force")));
}

TEST_F(RecipeJob, TakesTooLittleMemoryInARehearsalForNoError) {
  on_call = [](const std::string& call) {
    if (call == "heal rehearsed") throw Error(ErrorKind::kOutOfResources, "too large");
  };
  EXPECT_EQ(run().results.size(), 3U);
}

TEST_F(RecipeJob, GoesOnWithTheStepThatWasStopped) {
  on_call = [](const std::string& call) {
    if (call == "heal") throw Error(ErrorKind::kInterrupted, "interrupted");
  };
  expect_error(ErrorKind::kInterrupted, {"step 2 of 3 (heal): interrupted; to go on with this step: dynslice run"},
               [&] { run(); });
  calls.clear();
  printed.clear();
  on_call = nullptr;
  request.common.resume = true;
  run();
  EXPECT_THAT(calls, ElementsAre("heal resumed", "eval by force"));
  EXPECT_EQ(printed, "slice was done\nheal was done\neval was done\n");
}

TEST_F(RecipeJob, RefusesAnotherStepInThePlaceOfOneThatIsDone) {
  on_call = [](const std::string& call) {
    if (call == "heal") throw Error(ErrorKind::kInterrupted, "interrupted");
  };
  expect_error(ErrorKind::kInterrupted, {"heal"}, [&] { run(); });
  request.common.resume = true;
  request.steps.front().job = "dynslice slice --avg 30%";
  expect_error(ErrorKind::kUsage, {"`dynslice slice --avg 30%` and was `dynslice slice`"}, [&] { run(); });
}

TEST_F(RecipeJob, HasNothingLeftToDoWhereItWasFinished) {
  request.steps = {writer("heal", request.output, true)};
  run();
  calls.clear();
  request.common.resume = true;
  EXPECT_EQ(run().results.size(), 1U);
  EXPECT_TRUE(calls.empty());
}

TEST_F(RecipeJob, DoesNotReplaceWhatIsInTheWayOfAStep) {
  std::filesystem::create_directories(steps_folder(request.output) / "1-slice");
  expect_error(ErrorKind::kUsage, {"1-slice"}, [&] { run(); });
  EXPECT_TRUE(calls.empty());
  request.common.force = true;
  EXPECT_EQ(run().results.size(), 3U);
}

TEST_F(RecipeJob, GivesTheResultsAsJsonWhereThatIsAsked) {
  request.common.json = true;
  EXPECT_EQ(run().results[2].at("result").at("of"), "eval");
  EXPECT_EQ(printed, "");
}

}  // namespace
}  // namespace dynslice
