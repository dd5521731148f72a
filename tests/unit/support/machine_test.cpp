#include "dynslice/support/machine.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "unit/support/error_matchers.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

// A /proc and /sys as a container sees them.
class Machine : public ::testing::Test {
 protected:
  void put(const std::string& file, const std::string& content) {
    std::filesystem::create_directories((root_ / file).parent_path());
    testing::write_bytes(root_ / file, content);
  }
  void SetUp() override { put("proc/meminfo", "MemTotal:  16777216 kB\nMemAvailable:  8388608 kB\n"); }
  uint64_t available() const { return available_memory_bytes(root_.path()); }

  testing::TemporaryFolder root_;
};

TEST_F(Machine, WithoutAContainerHasWhatTheKernelSays) { EXPECT_EQ(available(), 8 * kGiB); }

TEST_F(Machine, HasNoMoreThanTheLimitOfItsCgroupLeaves) {
  put("proc/self/cgroup", "0::/job\n");
  put("sys/fs/cgroup/job/memory.max", std::to_string(4 * kGiB) + "\n");
  put("sys/fs/cgroup/job/memory.current", std::to_string(3 * kGiB) + "\n");
  put("sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file " + std::to_string(kGiB) + "\n");
  EXPECT_EQ(available(), 2 * kGiB);  // page cache is given up first
}

TEST_F(Machine, ObeysTheLimitOfAParentCgroup) {
  put("proc/self/cgroup", "0::/slice/job\n");
  put("sys/fs/cgroup/slice/job/memory.max", "max\n");
  put("sys/fs/cgroup/slice/job/memory.current", "1000\n");
  put("sys/fs/cgroup/slice/memory.max", std::to_string(kGiB) + "\n");
  put("sys/fs/cgroup/slice/memory.current", "0\n");
  EXPECT_EQ(available(), kGiB);
}

TEST_F(Machine, KnowsTheFirstVersionOfCgroups) {
  put("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/job\n0::/\n");
  put("sys/fs/cgroup/memory/job/memory.limit_in_bytes", std::to_string(3 * kGiB));
  put("sys/fs/cgroup/memory/job/memory.usage_in_bytes", std::to_string(kGiB));
  EXPECT_EQ(available(), 2 * kGiB);
}

TEST_F(Machine, FindsTheLimitAtTheMountPointWhenItsGroupIsHidden) {  // in a cgroup namespace of another one's
  put("proc/self/cgroup", "4:memory:/docker/0123\n");
  put("sys/fs/cgroup/memory/memory.limit_in_bytes", std::to_string(kGiB));
  put("sys/fs/cgroup/memory/memory.usage_in_bytes", "0");
  EXPECT_EQ(available(), kGiB);
}

TEST(MemoryOfThisProcess, IsCounted) {
  const uint64_t before = current_rss_bytes();
  const std::vector<char> pages(64 << 20, 1);
  EXPECT_GE(current_rss_bytes(), before + (60 << 20));
  EXPECT_GE(peak_rss_bytes(), current_rss_bytes());
  EXPECT_EQ(pages.back(), 1);
}

TEST(ByteSize, IsReadWithDecimalAndBinaryUnits) {
  EXPECT_EQ(parse_byte_size("--x", "512MB"), 512'000'000U);
  EXPECT_EQ(parse_byte_size("--x", "2G"), 2'000'000'000U);
  EXPECT_EQ(parse_byte_size("--x", "1.5 GiB"), 3 * kGiB / 2);
  EXPECT_EQ(parse_byte_size("--x", "64k"), 64'000U);
  EXPECT_EQ(parse_byte_size("--x", "4096"), 4096U);
  EXPECT_EQ(parse_byte_size("--x", "10B"), 10U);
}

TEST(ByteSize, OfAnythingElseIsWrongUsage) {
  for (const char* text : {"", "GB", "much", "-1GB", "0", "2GX", "2XB", "1e3", "nan", "inf", "5iB", "99999999T"}) {
    testing::expect_error(ErrorKind::kUsage, {"--max-memory", text, "2GB"},
                          [&] { parse_byte_size("--max-memory", text); });
  }
}

TEST(AvailableDisk, IsThatOfTheNearestFolderThatExists) {
  const testing::TemporaryFolder folder;
  EXPECT_GT(available_disk_bytes(folder / "not/yet/there"), 0U);
  EXPECT_LT(available_disk_bytes(folder.path()), UINT64_MAX);
}

}  // namespace
}  // namespace dynslice
