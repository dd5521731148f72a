// Expecting the library's one exception type.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "dynslice/support/error.h"

namespace dynslice::testing {

// Runs `act` and expects an Error of `kind` whose message is one line that holds every one of `parts`.
template <typename Act>
void expect_error(ErrorKind kind, const std::vector<std::string>& parts, Act act) {
  try {
    act();
    ADD_FAILURE() << "no error was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    EXPECT_THAT(error.what(), ::testing::Not(::testing::HasSubstr("\n")));
    for (const std::string& part : parts) EXPECT_THAT(error.what(), ::testing::HasSubstr(part));
  }
}

}  // namespace dynslice::testing
