#include "cli/log/log.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "dynslice/support/files.h"
#include "dynslice/support/log.h"
#include "unit/support/error_matchers.h"
#include "unit/support/temporary_folder.h"

namespace dynslice::cli {
namespace {

using dynslice::testing::expect_error;
using dynslice::testing::TemporaryFolder;
using ::testing::ContainsRegex;

// A pseudo terminal whose output comes as it was written: no carriage return before a line break.
class PseudoTerminal {
 public:
  PseudoTerminal() : leader_(::posix_openpt(O_RDWR | O_NOCTTY)) {
    EXPECT_EQ(::grantpt(leader_), 0);
    EXPECT_EQ(::unlockpt(leader_), 0);
    follower_ = ::open(::ptsname(leader_), O_RDWR | O_NOCTTY);
    termios mode{};
    ::tcgetattr(follower_, &mode);
    ::cfmakeraw(&mode);
    ::tcsetattr(follower_, TCSANOW, &mode);
  }
  ~PseudoTerminal() {
    ::close(follower_);
    ::close(leader_);
  }
  PseudoTerminal(const PseudoTerminal&) = delete;
  PseudoTerminal& operator=(const PseudoTerminal&) = delete;

  int follower() const { return follower_; }
  // What was written so far: less than a terminal holds.
  std::string written() const {
    ::fcntl(leader_, F_SETFL, O_NONBLOCK);
    std::string text;
    std::array<char, 4096> part{};
    for (ssize_t n = 0; (n = ::read(leader_, part.data(), part.size())) > 0;) text.append(part.data(), n);
    return text;
  }

 private:
  int leader_;
  int follower_ = -1;
};

class Log : public ::testing::Test {
 protected:
  void SetUp() override {
    ::setenv("TERM", "xterm", 1);
    ::unsetenv("NO_COLOR");
  }
  void TearDown() override { set_log_handler({}); }

  // What a terminal gets on standard error.
  static std::string on_terminal(const std::function<void()>& work) {
    const PseudoTerminal terminal;
    const int before = ::dup(STDERR_FILENO);
    ::dup2(terminal.follower(), STDERR_FILENO);
    work();
    ::dup2(before, STDERR_FILENO);
    ::close(before);
    return terminal.written();
  }

  // What a file gets.
  static std::string in_file(const std::function<void()>& work) {
    ::testing::internal::CaptureStderr();
    work();
    return ::testing::internal::GetCapturedStderr();
  }

  static void say_all() {
    log(LogLevel::kDebug, "a detail");
    log(LogLevel::kInfo, "a {notice}");
    log(LogLevel::kWarning, "a doubt");
    report_error("an error");
  }

  TemporaryFolder folder_;
};

TEST_F(Log, IsPlainWhereThereIsNoTerminal) {
  const auto shown = [](bool quiet, bool verbose) {
    return in_file([&] {
      install_log({.quiet = quiet, .verbose = verbose, .file = "", .heading = ""});
      say_all();
    });
  };
  EXPECT_EQ(shown(false, false), "a {notice}\nwarning: a doubt\ndynslice: an error\n");
  EXPECT_EQ(shown(false, true), "a detail\na {notice}\nwarning: a doubt\ndynslice: an error\n");
  EXPECT_EQ(shown(true, false), "dynslice: an error\n");
}

TEST_F(Log, IsColouredOnATerminal) {
  const auto shown = [] {
    return on_terminal([] {
      install_log({.quiet = false, .verbose = true, .file = "", .heading = ""});
      say_all();
    });
  };
  EXPECT_EQ(shown(),
            "\033[36ma detail\033[m\na {notice}\n\033[33m\033[1mwarning: \033[ma doubt\n"
            "\033[31m\033[1mdynslice: \033[man error\n");
  const std::string plain = "a detail\na {notice}\nwarning: a doubt\ndynslice: an error\n";
  ::setenv("NO_COLOR", "1", 1);
  EXPECT_EQ(shown(), plain);
  ::unsetenv("NO_COLOR");
  ::setenv("TERM", "dumb", 1);
  EXPECT_EQ(shown(), plain);
}

TEST_F(Log, AMessageIsPrintedAboveTheStatusLine) {
  const std::string shown = on_terminal([] {
    install_log({});
    draw_status("Scoring 10%");
    log(LogLevel::kInfo, "a notice");
    log(LogLevel::kDebug, "what is not shown leaves the line alone");
    finish_status("Scoring 100%");
    log(LogLevel::kInfo, "another");
  });
  EXPECT_EQ(shown, "\r\033[KScoring 10%\r\033[Ka notice\nScoring 10%\r\033[KScoring 100%\nanother\n");
}

TEST_F(Log, MessagesOfSeveralThreadsTearNothing) {
  const std::string shown = on_terminal([] {
    install_log({});
    std::vector<std::thread> threads;
    threads.emplace_back([] {
      for (int i = 0; i < 20; ++i) draw_status("BAR");
    });
    for (int t = 0; t < 2; ++t) {
      threads.emplace_back([] {
        for (int i = 0; i < 20; ++i) log(LogLevel::kInfo, "message");
      });
    }
    for (std::thread& thread : threads) thread.join();
    finish_status("BAR");
  });
  // Without the redrawings only whole messages are left.
  std::string messages = shown;
  for (const std::string part : {"\r\033[K", "BAR"}) {
    for (size_t at = 0; (at = messages.find(part)) != std::string::npos;) messages.erase(at, part.size());
  }
  std::string expected;
  for (int i = 0; i < 40; ++i) expected += "message\n";
  expected += '\n';  // of the status line
  EXPECT_EQ(messages, expected);
}

TEST_F(Log, TheFileHasEveryMessageWithTimeAndLevel) {
  const auto path = folder_ / "folder" / "run.log";
  const std::string shown = in_file([&] {
    install_log({.quiet = true, .verbose = false, .file = path.string(), .heading = "dynslice score"});
    say_all();
  });
  EXPECT_EQ(shown, "dynslice: an error\n");
  const std::string time = "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}[+-][0-9]{2}:[0-9]{2} ";
  EXPECT_THAT(read_file(path), ::testing::MatchesRegex(time + "\\[info\\] dynslice score\n" +  //
                                                       time + "\\[debug\\] a detail\n" +       //
                                                       time + "\\[info\\] a \\{notice\\}\n" +  //
                                                       time + "\\[warning\\] a doubt\n" +      //
                                                       time + "\\[error\\] an error\n"));
}

TEST_F(Log, TheNextRunIsAppendedToTheFile) {
  const std::string path = (folder_ / "run.log").string();
  for (const char* run : {"first", "second"})
    install_log({.quiet = true, .verbose = false, .file = path, .heading = run});
  EXPECT_THAT(read_file(path), ContainsRegex("first\n.*second\n"));
}

TEST_F(Log, AFileThatCannotBeWrittenIsAnError) {
  const auto refuses = [](const std::string& path, const std::string& reason) {
    expect_error(ErrorKind::kOutOfResources, {path + ": the log file cannot be written (" + reason + ")"},
                 [&] { install_log({.quiet = false, .verbose = false, .file = path, .heading = ""}); });
  };
  refuses(folder_.path().string(), "Is a directory");
  refuses("/dev/full", "No space left on device");
}

TEST_F(Log, GoesOnWithoutAFileThatCanNoLongerBeWritten) {
  const std::string path = (folder_ / "run.log").string();
  constexpr rlim_t kLargest = 1000;  // bytes of any file
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const std::string shown = in_file([&] {
    install_log({.quiet = false, .verbose = false, .file = path, .heading = std::string(kLargest, 'x')});
    const rlimit limit{kLargest, before.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    log(LogLevel::kInfo, "first");
    log(LogLevel::kInfo, "second");
    ::setrlimit(RLIMIT_FSIZE, &before);
  });
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(shown, "first\nwarning: " + path + ": the log file can no longer be written; it ends here\nsecond\n");
}

TEST_F(Log, IsMutedForAWhile) {
  const std::string shown = in_file([] {
    install_log({});
    {
      const MutedLog muted;
      say_all();
    }
    log(LogLevel::kInfo, "afterwards");
  });
  EXPECT_EQ(shown, "dynslice: an error\nafterwards\n");
}

}  // namespace
}  // namespace dynslice::cli
