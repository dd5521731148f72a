#include "dynslice/support/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <span>
#include <string>
#include <utility>

#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

bool is_open(int descriptor) { return ::fcntl(descriptor, F_GETFD) >= 0; }

class FileTest : public ::testing::Test {
 protected:
  std::filesystem::path path(const std::string& name) const { return folder_.path() / name; }

  testing::TemporaryFolder folder_;
};

TEST_F(FileTest, IsClosedWithItsLastOwner) {
  int descriptor = -1;
  {
    File first(path("x"), O_RDWR | O_CREAT);
    descriptor = first.descriptor();
    File second = std::move(first);
    EXPECT_FALSE(first.is_open());  // NOLINT(bugprone-use-after-move)
    EXPECT_EQ(second.descriptor(), descriptor);
  }
  EXPECT_FALSE(is_open(descriptor));
}

TEST_F(FileTest, ClosesWhatItHeldWhenAnotherIsAssigned) {
  File file(path("x"), O_RDWR | O_CREAT);
  const int first = file.descriptor();
  File other(path("y"), O_RDWR | O_CREAT);
  const int second = other.descriptor();
  file = std::move(other);
  EXPECT_FALSE(is_open(first));
  EXPECT_EQ(file.descriptor(), second);
}

TEST_F(FileTest, IsNotInheritedByOtherPrograms) {
  const File file(path("x"), O_RDWR | O_CREAT);
  EXPECT_NE(::fcntl(file.descriptor(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_F(FileTest, ThatIsMissingIsNotOpenAndLeavesItsErrno) {
  const File file(path("missing"), O_RDONLY);
  EXPECT_EQ(errno, ENOENT);
  EXPECT_FALSE(file.is_open());
}

TEST_F(FileTest, ReadsWhatWasWrittenAndFewerBytesAtItsEnd) {
  const File file(path("x"), O_RDWR | O_CREAT);
  ASSERT_TRUE(file.write(bytes_of("hello ")));
  ASSERT_TRUE(file.write(bytes_of("world")));
  ASSERT_TRUE(file.write_at(bytes_of("W"), 6));
  std::string found(10, '\0');
  EXPECT_EQ(file.read_at(std::as_writable_bytes(std::span(found)), 4), 7U);
  EXPECT_EQ(found.substr(0, 7), "o World");
}

TEST_F(FileTest, ThatCannotBeWrittenLeavesItsErrno) {
  const File full("/dev/full", O_WRONLY);
  ASSERT_TRUE(full.is_open());
  EXPECT_FALSE(full.write(bytes_of("x")));
  EXPECT_EQ(errno, ENOSPC);
}

TEST_F(FileTest, KeepsErrnoWhenItIsClosed) {
  File file(path("x"), O_RDWR | O_CREAT);
  errno = ENOSPC;
  file.close();
  EXPECT_EQ(errno, ENOSPC);
}

TEST_F(FileTest, IsLockedForOneOwnerOnly) {
  const File first(path("x"), O_RDWR | O_CREAT), second(path("x"), O_RDWR);
  EXPECT_TRUE(first.lock());
  EXPECT_FALSE(second.lock());
  EXPECT_EQ(errno, EWOULDBLOCK);
}

TEST_F(FileTest, SaysWhetherItIsStillUnderItsName) {
  const File file(path("x"), O_RDWR | O_CREAT);
  EXPECT_TRUE(file.is_still_at(path("x")));
  std::filesystem::rename(path("x"), path("y"));
  EXPECT_FALSE(file.is_still_at(path("x")));
  const File other(path("x"), O_RDWR | O_CREAT);
  EXPECT_FALSE(file.is_still_at(path("x")));
}

}  // namespace
}  // namespace dynslice
