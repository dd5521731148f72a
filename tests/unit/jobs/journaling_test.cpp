#include "dynslice/jobs/journaling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <string>
#include <vector>

#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/support/error.h"
#include "unit/jobs/model_folder.h"
#include "unit/support/error_matchers.h"
#include "unit/support/scoped_variable.h"

namespace dynslice {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using testing::expect_error;
using testing::ModelFolder;
using testing::write_bytes;

// What the shell makes of a command line.
std::string output_of_shell(const std::string& command) {
  std::string text;
  std::FILE* const pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) return text;
  std::array<char, 256> buffer{};
  for (size_t read = 0; (read = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;)
    text.append(buffer.data(), read);
  ::pclose(pipe);
  return text;
}

TEST(ShellLine, IsReadByAShellAsTheWordsThatItIsMadeOf) {
  const std::vector<std::string> words = {"plain",       "two words", "it's", "$HOME", "`id`",     "a\"b",
                                          "back\\slash", "*",         "",     "-o",    "new\nline"};
  std::vector<std::string> command = {"printf", "%s|"};
  command.insert(command.end(), words.begin(), words.end());
  std::string expected;
  for (const std::string& word : words) expected += word + "|";
  EXPECT_EQ(output_of_shell(shell_line(command)), expected);
}

TEST(ShellLine, LeavesPlainWordsAsTheyAre) {
  EXPECT_EQ(shell_line({"dynslice", "slice", "--avg=25%", "-o", "out/model-1.0"}),
            "dynslice slice --avg=25% -o out/model-1.0");
}

TEST(JobCommandLine, LeavesOutWhatDoesNotBelongToTheJob) {
  const std::vector<std::string> line = {"dynslice", "slice", "-q", "--force", "--resume", "--json", "-o", "out"};
  EXPECT_THAT(job_command_line(line, false), ElementsAre("dynslice", "slice", "-o", "out"));
  EXPECT_THAT(job_command_line(line, true), ElementsAre("dynslice", "slice", "-q", "--force", "--json", "-o", "out"));
}

TEST(ResumingCommand, IsThatOfTheRecipeForAStepOfOne) {
  CommonOptions common;
  common.command_line = {"dynslice", "slice", "--resume"};
  EXPECT_EQ(resuming_command(common), "dynslice slice --resume");
  common.recipe = RecipePlace{"recipe.json", "", 1, 2, {"dynslice", "run", "recipe.json"}};
  EXPECT_EQ(resuming_command(common), "dynslice run recipe.json --resume");
}

TEST(JournalOptionsOfEnvironment, NameTheValuesThatThereAre) {
  const ScopedVariable pace("DYNSLICE_JOURNAL", "sometimes");
  expect_error(ErrorKind::kUsage, {"DYNSLICE_JOURNAL=sometimes", "auto, every, off"}, [] { journal_options({}); });
}

TEST(JournalOptionsOfEnvironment, FollowTheRequest) {
  const ScopedVariable pace("DYNSLICE_JOURNAL", "every"), stop("DYNSLICE_STOP_AFTER", nullptr);
  CommonOptions common;
  common.resume = true;
  const JournalOptions options = journal_options(common);
  EXPECT_TRUE(options.resume);
  EXPECT_FALSE(options.start_over);
  EXPECT_EQ(options.pace, JournalPace::kEvery);
}

TEST(FaultPointOfEnvironment, IsRefusedInAnotherForm) {
  for (const char* text : {"soon", "0", "slicing:", "slicing:1:later", "1:saved:HUP", "1 "}) {
    const ScopedVariable stop("DYNSLICE_STOP_AFTER", text);
    expect_error(ErrorKind::kUsage, {"DYNSLICE_STOP_AFTER=" + std::string(text), "[PHASE:]N"}, [] { fault_point(); });
  }
}

TEST(FaultPointOfEnvironment, IsReadInEveryForm) {
  for (const char* text : {"3", "slicing:2", "1:data", "training:4:state:TERM", "2:saved:INT:KILL"}) {
    const ScopedVariable stop("DYNSLICE_STOP_AFTER", text);
    EXPECT_NO_THROW(fault_point()) << text;
  }
}

// The fingerprint of a job on the folder's model and text.
std::string fingerprint_of(const ModelFolder& folder, const CommonOptions& common) {
  const auto model = open_checkpoint(folder / "model");
  const LoadedText text = load_windows(folder.text(), TextUse::kCalibration, common, *model, no_progress());
  return to_text(fingerprint(common, {}, *model, &text, folder.text()));
}

TEST(JobFingerprint, ChangesWithOptionsTextAndModel) {
  const ModelFolder folder;
  CommonOptions common = folder.common("slice");
  std::vector<std::string> all = {fingerprint_of(folder, common)};
  EXPECT_EQ(fingerprint_of(folder, common), all.front());
  common.given = {{"--avg", "25%"}};
  all.push_back(fingerprint_of(folder, common));
  write_bytes(folder / "text.txt", "x" + testing::random_words(1024));
  all.push_back(fingerprint_of(folder, common));
  std::filesystem::last_write_time(folder / "model" / "model.safetensors", std::filesystem::file_time_type());
  all.push_back(fingerprint_of(folder, common));
  for (size_t i = 0; i < all.size(); ++i) {
    for (size_t j = 0; j < i; ++j) EXPECT_NE(all[i], all[j]) << i << " " << j;
  }
}

TEST(JobFingerprint, ForgetsOutputOptionsOfTheCommandLine) {
  const ModelFolder folder;
  CommonOptions common = folder.common("slice");
  const std::string plain = fingerprint_of(folder, common);
  common.json = common.quiet = common.resume = true;
  EXPECT_EQ(fingerprint_of(folder, common), plain);
}

}  // namespace
}  // namespace dynslice
