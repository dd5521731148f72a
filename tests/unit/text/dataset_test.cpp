#include "dynslice/text/datasets/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zip.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/hash.h"
#include "text/datasets/dataset_wikitext.h"
#include "text/datasets/zip_extract.h"
#include "unit/text/dataset_fixture.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

void write_zip(const fs::path& path, const std::vector<std::pair<std::string, std::string>>& members) {
  int code = 0;
  zip_t* archive = zip_open(path.c_str(), ZIP_CREATE | ZIP_TRUNCATE, &code);
  ASSERT_NE(archive, nullptr);
  for (const auto& [name, content] : members) {
    zip_source_t* source = zip_source_buffer(archive, content.data(), content.size(), 0);
    ASSERT_GE(zip_file_add(archive, name.c_str(), source, ZIP_FL_ENC_UTF_8), 0);
  }
  ASSERT_EQ(zip_close(archive), 0);
}

TEST(WikitextRows, KeepTheNewlineAndMakeBlankLinesEmpty) {
  EXPECT_THAT(wikitext_rows(" = A = \n \n text\nlast"), ElementsAre(" = A = \n", "", " text\n", "last"));
}

TEST(WikitextRows, AreJoinedByTwoNewlines) {
  EXPECT_EQ(join_wikitext(" \n = A = \n \n b\n"),
            "\n\n"
            " = A = \n"
            "\n\n"
            "\n\n"
            " b\n");
}

TEST(WikitextRows, OfTheTestSplitAreAsManyAsPublished) {
  const char* data = std::getenv("DYNSLICE_DATA_DIR");
  if (data == nullptr)
    GTEST_SKIP() << "SKIPPED: DYNSLICE_DATA_DIR is not set, it must hold wikitext-2-raw/wiki.test.raw";
  const std::string raw = read_file(fs::path(data) / "wikitext-2-raw" / "wiki.test.raw");
  ASSERT_EQ(raw.size(), 1290590u);
  EXPECT_EQ(wikitext_rows(raw).size(), 4358u);
  const std::string text = join_wikitext(raw);
  // Code points: every byte that does not continue another.
  const auto characters = std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
  EXPECT_EQ(characters, 1294336);
}

TEST_F(DatasetTest, EvaluationTakesTheTestSplit) {
  const fs::path path = write("data/wikitext-2-raw/wiki.test.raw", " a\n b\n");
  const TextSource source = load("wikitext2");
  EXPECT_EQ(source.name, "wikitext2");
  EXPECT_EQ(source.split, "test");
  EXPECT_EQ(source.path, path);
  EXPECT_EQ(source.text, " a\n\n\n b\n");
  EXPECT_EQ(source.sha256, sha256(" a\n b\n"));
  EXPECT_EQ(source.notice, "");
}

TEST_F(DatasetTest, FileMayLieDirectlyInTheDataFolder) {
  write("data/wiki.valid.raw", " v\n");
  EXPECT_EQ(load("wikitext2:validation").text, " v\n");
}

TEST_F(DatasetTest, DataFolderIsLookedAtBeforeTheVariableAndThatBeforeTheCache) {
  write("cache/datasets/wikitext-2-raw/wiki.test.raw", "cache\n");
  EXPECT_EQ(load("wikitext2").text, "cache\n");
  write("env/wiki.test.raw", "variable\n");
  ::setenv("DYNSLICE_DATA_DIR", (folder_ / "env").c_str(), 1);
  EXPECT_EQ(load("wikitext2").text, "variable\n");
  write("data/wiki.test.raw", "folder\n");
  EXPECT_EQ(load("wikitext2").text, "folder\n");
}

TEST_F(DatasetTest, CalibrationPrefersTrainingWhereverItLies) {
  write("data/wiki.valid.raw", "valid\n");
  write("cache/datasets/wikitext-2-raw/wiki.train.raw", "train\n");
  const TextSource source = load("wikitext2", TextUse::kCalibration);
  EXPECT_EQ(source.split, "train");
  EXPECT_EQ(source.notice, "");
}

TEST_F(DatasetTest, CalibrationFallsBackToValidationAndSaysSo) {
  write("data/wiki.valid.raw", "valid\n");
  const TextSource source = load("wikitext2", TextUse::kCalibration);
  EXPECT_EQ(source.split, "validation");
  EXPECT_EQ(source.notice, "training split of wikitext2 is not at hand: calibrating on its validation split");
}

TEST_F(DatasetTest, CalibrationOnANamedSplitDoesNotFallBack) {
  write("data/wiki.valid.raw", "valid\n");
  const auto error = load_error("wikitext2:train", TextUse::kCalibration);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::kMissingData);
}

TEST_F(DatasetTest, MissingFileIsNamedWithThePlaceForIt) {
  const auto error = load_error("wikitext2");
  ASSERT_TRUE(error);
  EXPECT_EQ(error->exit_code(), 4);
  EXPECT_THAT(error->what(),
              AllOf(HasSubstr("wikitext-2-raw/wiki.test.raw"), HasSubstr("--data-dir"), HasSubstr("DYNSLICE_DATA_DIR"),
                    HasSubstr((folder_ / "data").string()), ::testing::Not(HasSubstr("\n"))));
}

TEST_F(DatasetTest, DataFolderThatIsNoneIsNamed) {
  const auto error =
      error_of([&] { load_text("wikitext2", TextUse::kEvaluation, folder_ / "nowhere", no_progress()); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::kMissingData);
  EXPECT_THAT(error->what(), HasSubstr((folder_ / "nowhere").string()));
}

TEST_F(DatasetTest, ArchiveInTheHubsCacheIsUnpackedOnce) {
  const std::string commit(40, 'a');
  const fs::path repo = folder_ / "hf/hub/datasets--ggml-org--ci";
  write("hf/hub/datasets--ggml-org--ci/refs/main", commit);
  fs::create_directories(repo / "snapshots" / commit);
  write_zip(repo / "snapshots" / commit / "wikitext-2-raw-v1.zip", {{"wikitext-2-raw/wiki.test.raw", "t\n"},
                                                                    {"wikitext-2-raw/wiki.valid.raw", "v\n"},
                                                                    {"wikitext-2-raw/wiki.train.raw", "r\n"},
                                                                    {"../../evil", "x"}});
  const TextSource source = load("wikitext2", TextUse::kCalibration);
  EXPECT_EQ(source.text, "r\n");
  EXPECT_EQ(source.path, folder_ / "cache/datasets/wikitext-2-raw/wiki.train.raw");
  EXPECT_FALSE(fs::exists(folder_ / "cache/evil"));
  fs::remove_all(repo);
  EXPECT_EQ(load("wikitext2").text, "t\n");
}

TEST_F(DatasetTest, ZipMemberAboveTheLimitIsRefused) {
  const fs::path path = folder_ / "bomb.zip";
  write_zip(path, {{"a", std::string(100'000, 'x')}});
  EXPECT_EQ(read_zip_member(path, "a", 100'000).size(), 100'000u);
  const auto error = error_of([&] { read_zip_member(path, "a", 99'999); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::kBadInput);
  EXPECT_THAT(error->what(), HasSubstr("99999"));
}

TEST_F(DatasetTest, ZipThatLacksTheMemberIsNamed) {
  const fs::path path = folder_ / "other.zip";
  write_zip(path, {{"other", "x"}});
  const auto error = error_of([&] { read_zip_member(path, "wikitext-2-raw/wiki.test.raw", 10); });
  ASSERT_TRUE(error);
  EXPECT_THAT(error->what(), AllOf(HasSubstr("other.zip"), HasSubstr("wiki.test.raw"), HasSubstr("missing")));
}

TEST_F(DatasetTest, ZipWithAnyByteFlippedGivesTheContentOrAnError) {
  const fs::path path = folder_ / "a.zip";
  const std::string content = "the content of a member, long enough to be deflated deflated deflated deflated";
  write_zip(path, {{"a", content}});
  const std::string whole = read_file(path);
  for (size_t i = 0; i < whole.size(); ++i) {
    std::string broken = whole;
    broken[i] = static_cast<char>(broken[i] ^ 0x55);
    std::ofstream(path, std::ios::binary | std::ios::trunc) << broken;
    try {
      EXPECT_EQ(read_zip_member(path, "a", 1000), content) << "byte " << i;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kBadInput) << "byte " << i;
    }
  }
}

TEST_F(DatasetTest, PlainFileIsItsTextAsItStands) {
  const std::string content = "\n  first\r\n\n\nlast ";
  const fs::path path = write("some.txt", content);
  const TextSource source = load(path.string());
  EXPECT_EQ(source.text, content);
  EXPECT_EQ(source.name, "some.txt");
  EXPECT_EQ(source.split, "");
}

TEST_F(DatasetTest, JsonlGivesTheTextsJoined) {
  const fs::path path = write("some.jsonl", "{\"text\": \"a\", \"id\": 1}\n\n{\"text\": \"\"}\r\n{\"text\": \"b\\n\"}");
  EXPECT_EQ(load(path.string()).text, "a\n\n\n\nb\n");
}

class BrokenJsonl : public DatasetTest, public ::testing::WithParamInterface<const char*> {};

TEST_P(BrokenJsonl, IsRefusedWithItsLine) {
  const fs::path path = write("broken.jsonl", std::string("{\"text\": \"a\"}\n\n") + GetParam() + "\n");
  const auto error = load_error(path.string());
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::kBadInput);
  EXPECT_THAT(error->what(), AllOf(HasSubstr("broken.jsonl"), HasSubstr("line 3")));
}

INSTANTIATE_TEST_SUITE_P(Lines, BrokenJsonl,
                         ::testing::Values("{\"text\": ", "[]", "\"a\"", "{}", "{\"text\": 1}", "{\"text\": null}",
                                           "{\"text\": \"a\"} x", "{\"text\": \"\xff\"}"));

TEST_F(DatasetTest, JsonlWithoutLinesIsRefused) {
  const auto error = load_error(write("empty.jsonl", "\n\n").string());
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::kBadInput);
}

TEST_F(DatasetTest, PathThatDoesNotExistIsMissingData) {
  for (const char* spec : {"no/such", "nosuch.txt"}) {
    const auto error = load_error(spec);
    ASSERT_TRUE(error) << spec;
    EXPECT_EQ(error->kind(), ErrorKind::kMissingData) << spec;
    EXPECT_THAT(error->what(), HasSubstr(spec));
  }
}

TEST_F(DatasetTest, UnknownNameListsTheKnownOnes) {
  for (const char* spec : {"wikitext3", "", "c5:train", "wikitext2:tset", "wikitext2:", "c4:test"}) {
    const auto error = load_error(spec);
    ASSERT_TRUE(error) << spec;
    EXPECT_EQ(error->kind(), ErrorKind::kUsage) << spec;
    EXPECT_THAT(error->what(), AllOf(HasSubstr("wikitext2"), HasSubstr("test, validation, train"))) << spec;
  }
}

TEST_F(DatasetTest, FolderIsNoText) {
  const auto error = load_error((folder_ / "data").string());
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::kBadInput);
}

std::vector<int32_t> counting(int32_t n) {
  std::vector<int32_t> stream(static_cast<size_t>(n));
  std::iota(stream.begin(), stream.end(), 0);
  return stream;
}

TEST(Windows, AreConsecutiveAndDropTheRest) {
  const TokenWindows windows = cut_windows(counting(11), {.seqlen = 3, .samples = 0, .range = {}, .shuffle = {}});
  EXPECT_EQ(windows.count, 3);
  EXPECT_EQ(windows.length, 3);
  EXPECT_EQ(windows.ids, counting(9));
}

TEST(Windows, AreTheFirstOnesWhenFewerAreAskedFor) {
  const TokenWindows windows = cut_windows(counting(11), {.seqlen = 3, .samples = 2, .range = {}, .shuffle = {}});
  EXPECT_EQ(windows.ids, counting(6));
}

TEST(Windows, OfARangeBeginAtItsBeginning) {
  const TokenWindows windows =
      cut_windows(counting(20), {.seqlen = 2, .samples = 0, .range = TokenRange{5, 10}, .shuffle = {}});
  EXPECT_THAT(windows.ids, ElementsAre(5, 6, 7, 8));
}

TEST(Windows, ShuffledArePermutedWholeWindows) {
  const TokenWindows windows = cut_windows(counting(400), {.seqlen = 4, .samples = 0, .range = {}, .shuffle = 7});
  std::set<int32_t> firsts;
  for (int64_t w = 0; w < windows.count; ++w) {
    const int32_t* window = windows.ids.data() + w * 4;
    EXPECT_EQ(window[0] % 4, 0);
    EXPECT_THAT(std::vector<int32_t>(window, window + 4),
                ElementsAre(window[0], window[0] + 1, window[0] + 2, window[0] + 3));
    firsts.insert(window[0]);
  }
  EXPECT_EQ(firsts.size(), 100u);
  EXPECT_NE(windows.ids, counting(400));
}

TEST(Windows, OfOneSeedAreTheSameAndOfAnotherNot) {
  const auto shuffled = [](uint64_t seed) {
    return cut_windows(counting(400), {.seqlen = 4, .samples = 0, .range = {}, .shuffle = seed}).ids;
  };
  EXPECT_EQ(shuffled(1), shuffled(1));
  EXPECT_NE(shuffled(1), shuffled(2));
}

// The generator's numbers are fixed by the C++ standard, so this order holds on every platform. The oracle is the
// textbook algorithm on the raw numbers; with 64 bits and few windows the rejected values never come up.
TEST(Windows, ShuffledFollowFisherAndYates) {
  std::mt19937_64 generator(42);
  std::vector<int32_t> expected = counting(10);
  for (size_t i = 10; i > 1; --i) std::swap(expected[i - 1], expected[generator() % i]);
  const TokenWindows windows = cut_windows(counting(10), {.seqlen = 1, .samples = 4, .range = {}, .shuffle = 42});
  expected.resize(4);
  EXPECT_EQ(windows.ids, expected);
}

TEST(Windows, TooFewSayBothNumbers) {
  const auto error =
      error_of([] { cut_windows(counting(11), {.seqlen = 3, .samples = 5, .range = {}, .shuffle = {}}); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::kUsage);
  EXPECT_THAT(error->what(), AllOf(HasSubstr("5 windows"), HasSubstr("only 3")));
}

TEST(Windows, LongerThanTheTextAreRefused) {
  const auto error =
      error_of([] { cut_windows(counting(11), {.seqlen = 12, .samples = 0, .range = {}, .shuffle = {}}); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::kUsage);
  EXPECT_THAT(error->what(), AllOf(HasSubstr("12"), HasSubstr("11")));
}

TEST(Windows, RangesOutsideOfTheTextAreRefused) {
  for (const TokenRange range : {TokenRange{0, 12}, TokenRange{-1, 5}, TokenRange{5, 5}, TokenRange{6, 5}}) {
    const auto error =
        error_of([&] { cut_windows(counting(11), {.seqlen = 1, .samples = 0, .range = range, .shuffle = {}}); });
    ASSERT_TRUE(error) << range.begin << ':' << range.end;
    EXPECT_EQ(error->kind(), ErrorKind::kUsage);
  }
}

TEST(Windows, LengthsAndCountsBelowOneAreRefused) {
  EXPECT_TRUE(error_of([] { cut_windows(counting(11), {.seqlen = 0, .samples = 0, .range = {}, .shuffle = {}}); }));
  EXPECT_TRUE(error_of([] { cut_windows(counting(11), {.seqlen = 1, .samples = -1, .range = {}, .shuffle = {}}); }));
}

}  // namespace
}  // namespace dynslice
