#include "dynslice/support/work_folder.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "dynslice/support/error.h"
#include "unit/support/error_matchers.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

using testing::expect_error;
using testing::TemporaryFolder;
using testing::write_bytes;

TEST(WorkFolder, TouchesNothingBeforeItIsOpened) {
  const TemporaryFolder folder;
  {
    const WorkFolder work(folder / "out.partial");
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "out.partial"));
}

TEST(WorkFolder, GoesWithItsFilesUnlessItIsKept) {
  const TemporaryFolder folder;
  for (const bool is_kept : {false, true}) {
    {
      WorkFolder work(folder / "deep" / "out.partial");
      work.open();
      write_bytes(work.path() / "file", "x");
      work.keep(is_kept);
    }
    EXPECT_EQ(std::filesystem::exists(folder / "deep" / "out.partial" / "file"), is_kept);
  }
}

TEST(WorkFolder, IsNotRemovedWhereItWasRenamed) {
  const TemporaryFolder folder;
  {
    WorkFolder work(folder / "out.partial");
    work.open();
    std::filesystem::rename(folder / "out.partial", folder / "out");
    work.release();
  }
  EXPECT_TRUE(std::filesystem::exists(folder / "out"));
}

TEST(WorkFolder, OpensWhatAnEarlierRunLeft) {
  const TemporaryFolder folder;
  WorkFolder work(folder / "out.partial");
  EXPECT_FALSE(work.open_existing());
  EXPECT_FALSE(work.is_open());
  std::filesystem::create_directory(folder / "out.partial");
  EXPECT_TRUE(work.open_existing());
  EXPECT_TRUE(work.is_open());
}

TEST(WorkFolder, IsOpenForOneRunAtATime) {
  const TemporaryFolder folder;
  {
    WorkFolder first(folder / "out.partial");
    first.open();
    WorkFolder second(folder / "out.partial");
    expect_error(ErrorKind::kUsage, {"out.partial", "another run is writing there"}, [&] { second.open(); });
    EXPECT_TRUE(std::filesystem::exists(folder / "out.partial"));
  }
  WorkFolder third(folder / "out.partial");
  third.open();
  EXPECT_TRUE(third.is_open());
}

TEST(WorkFolder, ClearsAllFilesButThoseToKeep) {
  const TemporaryFolder folder;
  WorkFolder work(folder / "out.partial");
  work.open();
  for (const char* name : {"journal.json", "journal-3.bin", "journal.txt", "model.safetensors"})
    write_bytes(work.path() / name, "x");
  work.clear(is_journal_file);
  EXPECT_TRUE(std::filesystem::exists(work.path() / "journal.json"));
  EXPECT_TRUE(std::filesystem::exists(work.path() / "journal-3.bin"));
  EXPECT_FALSE(std::filesystem::exists(work.path() / "journal.txt"));
  EXPECT_FALSE(std::filesystem::exists(work.path() / "model.safetensors"));
  work.clear();
  EXPECT_TRUE(std::filesystem::is_empty(work.path()));
}

TEST(WorkFolder, LeavesAFolderAloneThatNoRunMade) {
  const TemporaryFolder folder;
  std::filesystem::create_directories(folder / "out.partial" / "photos");
  {
    WorkFolder work(folder / "out.partial");
    expect_error(ErrorKind::kUsage, {"out.partial", "is in the way"}, [&] { work.open(); });
  }
  EXPECT_TRUE(std::filesystem::exists(folder / "out.partial" / "photos"));
}

TEST(WorkFolder, LeavesAFileAloneThatIsInTheWay) {
  const TemporaryFolder folder;
  write_bytes(folder / "out.partial", "x");
  {
    WorkFolder work(folder / "out.partial");
    expect_error(ErrorKind::kUsage, {"out.partial", "is in the way"}, [&] { work.open(); });
  }
  EXPECT_TRUE(std::filesystem::exists(folder / "out.partial"));
}

}  // namespace
}  // namespace dynslice
