#include "dynslice/walk/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "aten.h"
#include "unit/support/error_matchers.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

using testing::expect_error;
using testing::TemporaryFolder;
namespace fs = std::filesystem;

std::string content_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// What a walk holds: a matrix that is a view, one that is not there, and a stream of two chunks.
struct Held {
  double sum = 0.1 + 0.2;
  std::vector<int64_t> counts = {1, 2};
  at::Tensor basis = at::randn({7, 5}, at::kDouble).t(), absent;
  ResidualStream stream{{at::randn({2, 3, 4}), at::randn({1, 3, 4})}, nullptr, at::kCPU};
  WalkState state() {
    WalkState state;
    state.keep("sum", sum);
    state.keep("counts", counts);
    state.keep("basis", basis);
    state.keep("absent", absent);
    state.keep("stream", stream);
    return state;
  }
};

const OrderedJson kFingerprint = {{"--avg", "25%"}, {"seqlen", 64}};

class JournalOf : public ::testing::Test {
 protected:
  std::unique_ptr<Journal> open(bool resume, bool start_over = false, const OrderedJson& fingerprint = kFingerprint) {
    return std::make_unique<Journal>(std::make_shared<WorkFolder>(place_), fingerprint, OrderedJson{{"argv", "x"}},
                                     JournalOptions{resume, start_over, JournalPace::kEvery});
  }
  void keep_two_layers(Held& held) {
    const auto journal = open(false);
    journal->finish("scoring", {{"values", {0.1, 1.0 / 3}}});
    journal->save("slicing", 1, 9, held.state());
    journal->save("slicing", 2, 9, held.state());
  }

  TemporaryFolder folder_;
  fs::path place_ = folder_ / "out.partial";
};

TEST_F(JournalOf, AWalkGivesBackWhatWasSaved) {
  Held held, found;
  keep_two_layers(held);
  found.basis = found.absent = at::Tensor();
  found.stream.chunks.clear();
  found.sum = 0;
  found.counts.clear();
  const auto journal = open(true);
  EXPECT_TRUE(journal->is_resumed());
  EXPECT_EQ(journal->position(), "layer 3 of 9 (slicing)");
  EXPECT_EQ(journal->job().at("argv"), "x");
  EXPECT_EQ(journal->result("scoring")->at("values").at(1).get<double>(), 1.0 / 3);
  EXPECT_FALSE(journal->restore("scoring", found.state(), at::kCPU).has_value());
  EXPECT_EQ(journal->restore("slicing", found.state(), at::kCPU), 2);
  EXPECT_EQ(found.sum, 0.1 + 0.2);
  EXPECT_EQ(found.counts, (std::vector<int64_t>{1, 2}));
  EXPECT_TRUE(found.basis.equal(held.basis));
  EXPECT_EQ(found.basis.strides(), held.basis.strides());
  EXPECT_FALSE(found.absent.defined());
  ASSERT_EQ(found.stream.chunks.size(), 2U);
  for (size_t i = 0; i < 2; ++i) EXPECT_TRUE(found.stream.chunks[i].equal(held.stream.chunks[i]));
}

TEST_F(JournalOf, AValueOfAnotherTypeIsDamage) {
  Held held;
  keep_two_layers(held);
  std::string text;
  WalkState state = held.state();
  state.values.clear();
  state.keep("sum", text);
  expect_error(ErrorKind::kBadInput, {"value sum"}, [&] { open(true)->restore("slicing", state, at::kCPU); });
}

TEST_F(JournalOf, ACommandThatKeptNothingLeavesNothing) {
  {
    const auto journal = open(false);
    EXPECT_FALSE(journal->keep());
  }
  EXPECT_FALSE(fs::exists(place_));
}

TEST_F(JournalOf, AFinishedCommandIsRemovedWithItsFolder) {
  Held held;
  keep_two_layers(held);
  EXPECT_EQ(std::distance(fs::directory_iterator(place_), {}), 2);  // the state and the data of the last save only
  open(true)->remove_files();
  EXPECT_FALSE(fs::exists(place_));
}

TEST_F(JournalOf, AStoppedRunIsNeitherDroppedNorResumedUnasked) {
  Held held;
  keep_two_layers(held);
  expect_error(ErrorKind::kUsage, {"layer 3 of 9", "--resume", "--force"}, [&] { open(false); });
  EXPECT_TRUE(open(true)->is_resumed());  // still there
  EXPECT_FALSE(open(false, true)->is_resumed());
  EXPECT_FALSE(fs::exists(place_));
}

TEST_F(JournalOf, AnotherJobIsNamedByTheFirstKeyThatDiffers) {
  Held held;
  keep_two_layers(held);
  expect_error(ErrorKind::kUsage, {"--avg", "25%", "30%"},
               [&] { open(true, false, {{"--avg", "30%"}, {"seqlen", 32}}); });
  expect_error(ErrorKind::kUsage, {"seqlen", "64", "not given"}, [&] { open(true, false, {{"--avg", "25%"}}); });
  expect_error(ErrorKind::kUsage, {"new", "not given", "1"},
               [&] { open(true, false, {{"--avg", "25%"}, {"seqlen", 64}, {"new", 1}}); });
  EXPECT_TRUE(open(true)->is_resumed());
}

TEST_F(JournalOf, ARunThatAnotherIsWritingIsLeftAlone) {
  Held held;
  keep_two_layers(held);
  const auto journal = open(true);
  expect_error(ErrorKind::kUsage, {"another run"}, [&] { open(true); });
}

// A byte of every stretch of the state file and of the data: all are found before anything is used.
TEST_F(JournalOf, ADamagedFileIsNoticedWhereverItIs) {
  Held held;
  keep_two_layers(held);
  for (const auto& entry : fs::directory_iterator(place_)) {
    const std::string good = content_of(entry.path());
    const bool is_state = entry.path().filename() == "journal.json";
    for (size_t i = 0; i + 2 < good.size(); i += 13) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ 4);
      testing::write_bytes(entry.path(), bad);
      expect_error(ErrorKind::kBadInput, {"damaged", "without --resume"}, [&] {
        Held found;
        open(true)->restore("slicing", found.state(), at::kCPU);
      });
      if (HasFailure()) FAIL() << entry.path() << " byte " << i;
    }
    for (size_t length = 0; length + 1 < good.size(); length += is_state ? 97 : 50) {
      testing::write_bytes(entry.path(), good.substr(0, length));
      expect_error(ErrorKind::kBadInput, {"damaged"}, [&] { open(true); });
    }
    testing::write_bytes(entry.path(), good);
  }
  EXPECT_TRUE(open(true)->is_resumed());
}

// A kill between the new data and the new state: the old state, and the new file goes.
TEST_F(JournalOf, WhatAKilledSaveLeftIsRemoved) {
  Held held, found;
  keep_two_layers(held);
  testing::write_bytes(place_ / "journal-4.bin", "half of a stream");
  testing::write_bytes(place_ / "journal.json.partial-77", "{");
  const auto journal = open(true);
  EXPECT_EQ(journal->restore("slicing", found.state(), at::kCPU).value_or(-1), 2);
  EXPECT_EQ(std::distance(fs::directory_iterator(place_), {}), 2);
}

// At every moment of a save the old state is there or the new one, and what was written of the new one is no harm.
TEST_F(JournalOf, AKillWithinASaveLeavesTheOldStateOrTheNew) {
  struct Case {
    SaveMoment moment;
    int64_t next;
    std::vector<std::string> files;
  };
  const std::vector<Case> cases = {
      {SaveMoment::kData, 2, {"journal-3.bin", "journal-4.bin", "journal.json"}},
      {SaveMoment::kState, 2, {"journal-3.bin", "journal-4.bin", "journal.json", "partial"}},
      {SaveMoment::kSaved, 3, {"journal-4.bin", "journal.json"}}};
  for (const Case& expected : cases) {
    fs::remove_all(place_);
    Held held, found;
    keep_two_layers(held);
    const FaultPoint fault("slicing", 1, expected.moment, {SIGKILL});
    const auto save = [&] {
      Journal journal(std::make_shared<WorkFolder>(place_), kFingerprint, {},
                      {.resume = true, .pace = JournalPace::kEvery, .fault = fault});
      journal.save("slicing", 3, 9, held.state());
    };
    EXPECT_EXIT(save(), ::testing::KilledBySignal(SIGKILL), "");
    std::set<std::string> files;
    for (const auto& entry : fs::directory_iterator(place_)) {
      const std::string name = entry.path().filename();
      files.insert(name.starts_with("journal.json.") ? "partial" : name);
    }
    EXPECT_THAT(files, ::testing::UnorderedElementsAreArray(expected.files));
    const auto journal = open(true);
    EXPECT_EQ(journal->restore("slicing", found.state(), at::kCPU).value_or(-1), expected.next);
    EXPECT_EQ(std::distance(fs::directory_iterator(place_), {}), 2);
  }
}

TEST_F(JournalOf, ResultsThatWereNotDueAreKeptWhenTheCommandEndsEarly) {
  {
    Journal journal(std::make_shared<WorkFolder>(place_), {{"k", 1}}, {}, {});
    journal.finish("scoring", 7);
    EXPECT_FALSE(journal.has_state());  // too soon after the start
    EXPECT_TRUE(journal.keep());
  }
  Journal again(std::make_shared<WorkFolder>(place_), {{"k", 1}}, {}, {.resume = true});
  EXPECT_EQ(again.result("scoring"), OrderedJson(7));
}

TEST_F(JournalOf, ThatCannotBeWrittenDoesNotFailTheCommand) {
  testing::write_bytes(folder_ / "file", "x");
  Held held;
  Journal journal(std::make_shared<WorkFolder>(folder_ / "file" / "out.partial"), {{"k", 1}}, {},
                  {.pace = JournalPace::kEvery});
  journal.save("slicing", 1, 9, held.state());
  EXPECT_FALSE(journal.has_state());
}

TEST_F(JournalOf, TheAttachedStateComesBack) {
  Held held;
  {
    const auto journal = open(false);
    journal->attach([] { return OrderedJson{{"first.weight", "00"}}; });
    journal->save("slicing", 1, 9, held.state());
  }
  EXPECT_EQ(open(true)->attached().at("first.weight"), "00");
}

}  // namespace
}  // namespace dynslice
