#include "dynslice/support/system_error.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

TEST(SystemError, IsOutOfResourcesWhereDiskOrMemoryIsFull) {
  for (const int code : {ENOSPC, EDQUOT, EFBIG, ENOMEM}) {
    EXPECT_EQ(error_kind_of(code), ErrorKind::kOutOfResources) << code;
    EXPECT_EQ(error_kind_of(code, ErrorKind::kBadInput), ErrorKind::kOutOfResources) << code;
  }
}

TEST(SystemError, IsMissingDataWhereThereIsNoFile) {
  EXPECT_EQ(error_kind_of(ENOENT, ErrorKind::kBadInput), ErrorKind::kMissingData);
}

TEST(SystemError, IsElseWhatTheCallerSays) {
  for (const int code : {EACCES, EIO, EROFS, ENOTDIR}) {
    EXPECT_EQ(error_kind_of(code), ErrorKind::kMissingData) << code;
    EXPECT_EQ(error_kind_of(code, ErrorKind::kBadInput), ErrorKind::kBadInput) << code;
  }
}

TEST(SystemError, OfAFullDiskSaysWhatToDo) {
  testing::expect_error(ErrorKind::kOutOfResources, {"out/model: cannot be written (", "); free disk space"},
                        [] { throw_system_error("out/model", "cannot be written", ENOSPC); });
}

TEST(SystemError, OfMemoryDoesNotAskForDiskSpace) {
  try {
    throw_system_error("out/model", "cannot be mapped", ENOMEM);
  } catch (const Error& error) {
    EXPECT_TRUE(std::string(error.what()).ends_with(")")) << error.what();
  }
}

}  // namespace
}  // namespace dynslice
