#include "dynslice/jobs/generate.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <variant>

#include "dynslice/support/error.h"
#include "unit/jobs/model_folder.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::expect_error;
using testing::ModelFolder;
using testing::write_bytes;

GenerateRequest generate_of(const ModelFolder& folder) {
  GenerateRequest request;
  request.common = folder.common("generate");
  request.prompt = "once upon a time";
  request.max_tokens = 12;
  request.ignore_end = true;
  return request;
}

GenerateResult generate(const GenerateRequest& request, const GenerateCallbacks& callbacks = {}) {
  return std::get<GenerateResult>(run(request, no_progress(), callbacks));
}

TEST(GenerateJob, GivesTheTextInPiecesAndAsAWhole) {
  const ModelFolder folder;
  std::string text;
  const GenerateResult result =
      generate(generate_of(folder), {.read_prompt = {}, .on_text = [&](std::string_view piece) { text += piece; }});
  EXPECT_EQ(text, result.written.text);
  EXPECT_EQ(result.written.ids.size(), 12U);
  EXPECT_EQ(result.prompt_ids.size(), 16U);
  EXPECT_EQ(generate(generate_of(folder)).written.ids, result.written.ids);  // the same when nobody reads along
}

TEST(GenerateJob, TakesThePromptFromAFile) {
  const ModelFolder folder;
  write_bytes(folder / "prompt.txt", "once upon a time");
  GenerateRequest request = generate_of(folder);
  const GenerateResult expected = generate(request);
  request.prompt.reset();
  request.prompt_file = folder.in("prompt.txt");
  const GenerateResult result = generate(request);
  EXPECT_EQ(result.prompt, "once upon a time");
  EXPECT_EQ(result.written.ids, expected.written.ids);
}

TEST(GenerateJob, AsksItsCallerForAPromptThatTheRequestDoesNotHave) {
  const ModelFolder folder;
  GenerateRequest request = generate_of(folder);
  request.prompt.reset();
  request.prompt_file = "-";
  const GenerateResult result = generate(request, {.read_prompt = [] { return std::string("abc"); }, .on_text = {}});
  EXPECT_EQ(result.prompt, "abc");
  expect_error(ErrorKind::kUsage, {"there is no prompt"}, [&] { generate(request); });
  expect_error(ErrorKind::kUsage, {"the prompt is empty"},
               [&] { generate(request, {.read_prompt = [] { return std::string(); }, .on_text = {}}); });
}

TEST(GenerateJob, WritesNothingInADryRun) {
  const ModelFolder folder;
  GenerateRequest request = generate_of(folder);
  request.common.dry_run = true;
  bool has_text = false;
  const auto outcome = run(request, no_progress(), {.read_prompt = {}, .on_text = [&](auto) { has_text = true; }});
  EXPECT_EQ(std::get<DryRun>(outcome).job, "generate");
  EXPECT_FALSE(has_text);
}

TEST(GenerateJob, RefusesToChatWithAModelWithoutATemplate) {
  const ModelFolder folder;
  GenerateRequest request = generate_of(folder);
  request.chat = true;
  expect_error(ErrorKind::kMissingData, {"has no chat template"}, [&] { generate(request); });
}

}  // namespace
}  // namespace dynslice
