#include "dynslice/support/files.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "dynslice/support/error.h"
#include "dynslice/support/hash.h"
#include "dynslice/support/json.h"
#include "dynslice/support/progress.h"

namespace dynslice {
namespace {

class Files : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path folder_ = std::filesystem::temp_directory_path() / ("files-" + std::to_string(::getpid()));
};

template <typename Action>
ErrorKind kind_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return error.kind();
  }
  throw std::logic_error("no error was thrown");
}

TEST_F(Files, WrittenAtomicallyReadBackWholeAndLeaveNothingBeside) {
  const std::string content("a\0b\n", 4);
  write_file_atomically(folder_ / "x", "old");
  write_file_atomically(folder_ / "x", content);
  EXPECT_EQ(read_file(folder_ / "x"), content);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 1);
}

TEST_F(Files, ThatCannotBeReadSayWhichKindOfFailure) {
  EXPECT_EQ(kind_of([&] { read_file(folder_ / "missing"); }), ErrorKind::kMissingData);
  EXPECT_EQ(kind_of([&] { read_file(folder_); }), ErrorKind::kBadInput);
  EXPECT_EQ(kind_of([&] { MappedFile(folder_ / "missing"); }), ErrorKind::kMissingData);
  EXPECT_EQ(kind_of([&] { write_file_atomically(folder_ / "none" / "x", "y"); }), ErrorKind::kMissingData);
  write_file_atomically(folder_ / "x", "12345");
  EXPECT_EQ(kind_of([&] { read_file(folder_ / "x", 4); }), ErrorKind::kBadInput);
}

TEST_F(Files, WrittenThroughALinkReplaceWhatItPointsTo) {
  write_file_atomically(folder_ / "x", "old");
  std::filesystem::create_symlink("x", folder_ / "link");
  write_file_atomically(folder_ / "link", "new");
  EXPECT_TRUE(std::filesystem::is_symlink(folder_ / "link"));
  EXPECT_EQ(read_file(folder_ / "x"), "new");
  write_file_atomically("/dev/null", "gone");
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
}

TEST_F(Files, MappedShareTheirBytesAndOutliveTheirMap) {
  write_file_atomically(folder_ / "x", std::string(10000, 'q'));
  std::shared_ptr<const std::byte> owner;
  {
    const MappedFile map(folder_ / "x");
    ASSERT_EQ(map.size(), 10000U);
    owner = map.owner();
    map.release(0, 10000);
  }
  EXPECT_EQ(owner.get()[9999], std::byte{'q'});
  write_file_atomically(folder_ / "empty", "");
  EXPECT_EQ(MappedFile(folder_ / "empty").size(), 0U);
}

TEST_F(Files, HaveTheDigestsThatOtherToolsGive) {
  write_file_atomically(folder_ / "x", "hello\n");
  EXPECT_EQ(sha256_of_file(folder_ / "x"),
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");  // sha256sum
  EXPECT_EQ(sha256("hello\n"), sha256_of_file(folder_ / "x"));
  EXPECT_EQ(git_blob_sha1_of_file(folder_ / "x"), "ce013625030ba8dba906f756967f9e9ca394464a");  // git hash-object
}

TEST(JsonReader, NamesFileAndKeyOfWhatIsWrong) {
  const Json json =
      parse_json(R"({"a": 1, "b": "x", "c": {"d": 2.5}, "n": null, "big": 18446744073709551615})", "file");
  const JsonReader reader(json, "file");
  EXPECT_EQ(reader.integer("a"), 1);
  EXPECT_EQ(reader.object("c").number("d"), 2.5);
  EXPECT_EQ(reader.integer_or("n", 7), 7);
  const auto message = [&](auto action) {
    try {
      action();
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(message([&] { reader.integer("z"); }), "file: key \"z\" is missing");
  EXPECT_EQ(message([&] { reader.integer("b"); }), "file: key \"b\" must be an integer; found \"x\"");
  EXPECT_EQ(message([&] { reader.object("c").string("d"); }), "file: c: key \"d\" must be a string; found 2.5");
  EXPECT_EQ(message([&] { reader.integer("a", 2, 3); }), "file: key \"a\" must be an integer in [2, 3]; found 1");
  EXPECT_NE(message([&] { reader.integer("big"); }), "no error");
  EXPECT_EQ(message([&] { parse_json("1e999", "file"); }), "file: holds a number that is too large");
  EXPECT_NE(message([&] { parse_json("{\"a\": }", "file"); }).find("file: is not valid JSON"), std::string::npos);
}

TEST(Progress, StopsATaskOnceInterruptionIsRequested) {
  ProgressTask task(no_progress(), "task", 10, "steps");
  task.advance(1);
  EXPECT_EXIT(
      {
        request_interrupt();
        try {
          task.advance(1);
        } catch (const Error& error) {
          std::_Exit(error.exit_code());
        }
        std::_Exit(0);
      },
      ::testing::ExitedWithCode(130), "");
}

}  // namespace
}  // namespace dynslice
