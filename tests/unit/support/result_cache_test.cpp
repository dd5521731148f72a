#include "dynslice/support/result_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "dynslice/support/files.h"
#include "dynslice/support/log.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

class ResultCaching : public ::testing::Test {
 protected:
  ResultCaching() {
    set_log_handler([this](LogLevel level, const std::string& message) {
      if (level == LogLevel::kWarning) warnings_.push_back(message);
    });
  }
  ~ResultCaching() override { set_log_handler({}); }

  fs::path place() const { return folder_.path() / "results"; }
  std::vector<fs::path> files() const {
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(place())) found.push_back(entry.path());
    return found;
  }

  testing::TemporaryFolder folder_;
  ResultCache cache_{place()};
  std::vector<std::string> warnings_;
  OrderedJson fingerprint_ = {{"measurement", "perplexity"}, {"model", "abc"}, {"seqlen", 7}};
  // Numbers that have no short decimal form, and the smallest.
  OrderedJson result_ = {{"value", 1.0 / 3}, {"losses", {0.1, 5e-324}}, {"name", "é"}};
};

TEST_F(ResultCaching, GivesBackWhatWasKept) {
  EXPECT_EQ(cache_.find(fingerprint_), std::nullopt);
  cache_.keep(fingerprint_, result_);
  EXPECT_EQ(cache_.find(fingerprint_), result_);
  EXPECT_EQ(ResultCache(place()).find(fingerprint_), result_);
  ASSERT_EQ(files().size(), 1U);
  EXPECT_THAT(files().front().filename().string(), ::testing::MatchesRegex("perplexity-[0-9a-f]+\\.json"));
  EXPECT_TRUE(warnings_.empty());
}

TEST_F(ResultCaching, FindsNothingUnderAnotherFingerprint) {
  cache_.keep(fingerprint_, result_);
  for (const char* key : {"measurement", "model", "seqlen"}) {
    OrderedJson other = fingerprint_;
    other[key] = "other";
    EXPECT_EQ(cache_.find(other), std::nullopt) << key;
  }
  OrderedJson more = fingerprint_;
  more["dtype"] = "fp32";
  EXPECT_EQ(cache_.find(more), std::nullopt);
}

TEST_F(ResultCaching, ReplacesAResult) {
  cache_.keep(fingerprint_, result_);
  cache_.keep(fingerprint_, {{"value", 2}});
  EXPECT_EQ(cache_.find(fingerprint_), (OrderedJson{{"value", 2}}));
}

TEST_F(ResultCaching, NeverGivesWhatIsDamaged) {
  cache_.keep(fingerprint_, result_);
  const fs::path file = files().front();
  const std::string whole = read_file(file);
  const auto damaged = [&](const std::string& content) {
    std::ofstream(file, std::ios::binary | std::ios::trunc) << content;
    const size_t before = warnings_.size();
    const auto found = cache_.find(fingerprint_);
    if (found) return *found == result_;
    EXPECT_EQ(warnings_.size(), before + 1);
    EXPECT_THAT(warnings_.back(), ::testing::HasSubstr(file.string()));
    return true;
  };
  for (size_t i = 0; i < whole.size(); ++i) {
    EXPECT_TRUE(damaged(whole.substr(0, i))) << "cut at " << i;
    std::string flipped = whole;
    flipped[i] = static_cast<char>(flipped[i] ^ 0x11);
    EXPECT_TRUE(damaged(flipped)) << "byte " << i;
  }
}

TEST_F(ResultCaching, IsRepairedByTheNextResult) {
  cache_.keep(fingerprint_, result_);
  std::ofstream(files().front()) << "{";
  EXPECT_EQ(cache_.find(fingerprint_), std::nullopt);
  cache_.keep(fingerprint_, result_);
  EXPECT_EQ(cache_.find(fingerprint_), result_);
}

TEST_F(ResultCaching, OfAFileThatWasRenamedIsOfAnotherMeasurement) {
  OrderedJson other = fingerprint_;
  other["model"] = "def";
  cache_.keep(other, {{"value", 9}});
  const fs::path stranger = files().front();
  cache_.keep(fingerprint_, result_);
  for (const fs::path& file : files()) {
    if (file != stranger) fs::copy_file(stranger, file, fs::copy_options::overwrite_existing);
  }
  EXPECT_EQ(cache_.find(fingerprint_), std::nullopt);
  ASSERT_EQ(warnings_.size(), 1U);
  EXPECT_THAT(warnings_.front(), ::testing::HasSubstr("another measurement"));
}

TEST_F(ResultCaching, ThatCannotBeWrittenWarnsAndGoesOn) {
  std::ofstream(place()) << "a file where the folder should be";
  cache_.keep(fingerprint_, result_);
  EXPECT_EQ(warnings_.size(), 1U);
  EXPECT_EQ(cache_.find(fingerprint_), std::nullopt);
}

TEST_F(ResultCaching, ForgetsWhatNobodyAskedForInMonths) {
  OrderedJson other = fingerprint_, third = fingerprint_;
  other["model"] = "def";
  third["model"] = "ghi";
  cache_.keep(fingerprint_, result_);
  cache_.keep(other, result_);
  for (const fs::path& file : files())
    fs::last_write_time(file, fs::file_time_type::clock::now() - std::chrono::hours(24 * 100));
  EXPECT_TRUE(cache_.find(other));  // asked for
  cache_.keep(third, result_);
  EXPECT_EQ(cache_.find(fingerprint_), std::nullopt);
  EXPECT_TRUE(cache_.find(other));
  EXPECT_EQ(files().size(), 2U);
}

TEST_F(ResultCaching, WithoutAFolderKeepsNothing) {
  const ResultCache none({});
  none.keep(fingerprint_, result_);
  EXPECT_FALSE(none.is_enabled());
  EXPECT_EQ(none.find(fingerprint_), std::nullopt);
}

}  // namespace
}  // namespace dynslice
