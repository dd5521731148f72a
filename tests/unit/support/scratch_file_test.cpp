#include "dynslice/support/scratch_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstring>

#include "dynslice/support/machine.h"
#include "unit/support/error_matchers.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

TEST(ScratchFileTest, LeavesNoNameInItsFolder) {
  const testing::TemporaryFolder folder;
  ScratchFile file(folder.path());
  const auto block = file.allocate(kMiB);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(ScratchFileTest, KeepsWhatWasWrittenWhenItsPagesAreDropped) {
  const testing::TemporaryFolder folder;
  ScratchFile file(folder.path());
  const auto block = file.allocate(64 * kMiB);
  std::memset(block.get(), 7, 64 * kMiB);
  const uint64_t full = current_rss_bytes();
  ScratchFile::drop_pages(block.get(), 64 * kMiB);
  EXPECT_LE(current_rss_bytes() + 60 * kMiB, full);
  EXPECT_EQ(block.get()[0], std::byte{7});
  EXPECT_EQ(block.get()[64 * kMiB - 1], std::byte{7});
}

TEST(ScratchFileTest, HandsFreedBlocksOutAgain) {
  const testing::TemporaryFolder folder;
  ScratchFile file(folder.path());
  const auto kept = file.allocate(kMiB);
  for (int i = 0; i < 10; ++i) EXPECT_NE(file.allocate(kMiB - 5).get(), kept.get());
  EXPECT_EQ(file.file_bytes(), 2 * kMiB);
}

TEST(ScratchFileTest, GivesUpBlocksThatBecameTooSmall) {
  const testing::TemporaryFolder folder;
  ScratchFile file(folder.path());
  for (uint64_t size = 1; size <= 16; ++size) (void)file.allocate(size * kMiB);
  EXPECT_EQ(file.file_bytes(), 16 * kMiB);
}

TEST(ScratchFileTest, KnowsItsOwnBlocksAndNoOthers) {
  const testing::TemporaryFolder folder;
  ScratchFile file(folder.path());
  EXPECT_FALSE(file.contains(&file));
  const auto block = file.allocate(kMiB);
  EXPECT_TRUE(file.contains(block.get()));
  EXPECT_TRUE(file.contains(block.get() + kMiB - 1));
  EXPECT_FALSE(file.contains(block.get() + kMiB + 4096));
  EXPECT_FALSE(file.contains(&file));
}

TEST(ScratchFileTest, BlocksOutliveIt) {
  const testing::TemporaryFolder folder;
  std::shared_ptr<std::byte> block;
  {
    ScratchFile file(folder.path());
    block = file.allocate(kMiB);
  }
  block.get()[kMiB - 1] = std::byte{1};
}

TEST(ScratchFileTest, OnAFullDiskIsOutOfResources) {
  const testing::TemporaryFolder folder;
  ScratchFile file(folder.path());
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small{8 * kMiB, before.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &small);
  testing::expect_error(ErrorKind::kOutOfResources, {folder.path().string(), "--scratch-dir"},
                        [&] { file.allocate(64 * kMiB); });
  ::setrlimit(RLIMIT_FSIZE, &before);
}

TEST(ScratchFileTest, InAFolderThatIsNotThereIsMissingData) {
  testing::expect_error(ErrorKind::kMissingData, {"/no/such/folder", "--scratch-dir"},
                        [] { ScratchFile("/no/such/folder"); });
}

}  // namespace
}  // namespace dynslice
