#include "dynslice/hub/hub.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "dynslice/hub/http_client.h"
#include "dynslice/hub/hub_cache.h"
#include "dynslice/hub/hub_connection.h"
#include "dynslice/support/error.h"
#include "dynslice/support/log.h"
#include "unit/support/error_of.h"
#include "unit/support/scoped_variable.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

// A commit as the hub names it.
const std::string kCommit = "0123456789abcdef0123456789abcdef01234567";

// A folder that goes with the test.
class HubTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::path(testing::TempDir()) / ("hub_test_" + std::string(info->name()) + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  void write(const fs::path& path, const std::string& content) const {
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << content;
  }

  HubOptions offline() const {
    HubOptions options;
    options.endpoint = "https://hub.invalid";
    options.cache = folder_;
    options.offline = true;
    return options;
  }

  fs::path folder_;
};

// The environment without anything about the hub.
struct BareEnvironment {
  ScopedVariable home{"HF_HOME", nullptr}, cache{"HF_HUB_CACHE", nullptr}, endpoint{"HF_ENDPOINT", nullptr},
      token{"HF_TOKEN", nullptr}, offline{"HF_HUB_OFFLINE", nullptr}, xdg{"XDG_CACHE_HOME", nullptr};
};

TEST(HubId, WithoutARevisionMeansMain) {
  const auto id = parse_hub_id("HuggingFaceTB/SmolLM2-135M");
  ASSERT_TRUE(id);
  EXPECT_EQ(id->repo, "HuggingFaceTB/SmolLM2-135M");
  EXPECT_EQ(id->revision, "main");
}

TEST(HubId, TakesARevisionAfterTheAtSign) {
  const auto id = parse_hub_id("org/name@v1.0_x-2");
  ASSERT_TRUE(id);
  EXPECT_EQ(id->revision, "v1.0_x-2");
}

class NoHubId : public testing::TestWithParam<const char*> {};

TEST_P(NoHubId, IsRefused) { EXPECT_FALSE(parse_hub_id(GetParam())); }

INSTANTIATE_TEST_SUITE_P(Texts, NoHubId,
                         testing::Values("", "name", "/name", "org/", "org/name/more", "./model", "../model", "org/..",
                                         "org/na..me", "org/na--me", "org/name@", "org/name@../x", "org/name@a/b",
                                         "org/name@a@b", "org/na me", "org/name@.hidden", "/abs/path", "org\n/name",
                                         "-org/name", "org/name?x=1", "org/name#x"));

class UnsafePath : public testing::TestWithParam<const char*> {};

TEST_P(UnsafePath, IsNotJoinedToAFolder) { EXPECT_FALSE(is_safe_relative_path(GetParam())); }

INSTANTIATE_TEST_SUITE_P(Paths, UnsafePath,
                         testing::Values("", "..", "../evil", "a/../b", "/etc/passwd", "a//b", "a/", "./a", "a\\b",
                                         "a\nb"));

TEST(SafePath, MayHaveFoldersAndDots) {
  EXPECT_TRUE(is_safe_relative_path("config.json"));
  EXPECT_TRUE(is_safe_relative_path("sub/folder/a..b.safetensors"));
}

TEST(HubOptions, WithoutVariablesAreTheDefaultsOfHuggingFaceHub) {
  const BareEnvironment bare;
  const ScopedVariable home("HOME", "/home/someone");
  const HubOptions options = HubOptions::from_environment();
  EXPECT_EQ(options.endpoint, "https://huggingface.co");
  EXPECT_EQ(options.cache, "/home/someone/.cache/huggingface/hub");
  EXPECT_EQ(options.token, "");
  EXPECT_FALSE(options.offline);
}

TEST(HubOptions, FollowTheVariables) {
  const BareEnvironment bare;
  const ScopedVariable home("HF_HOME", "/data/hf");
  const ScopedVariable endpoint("HF_ENDPOINT", "http://127.0.0.1:8080/");
  const ScopedVariable token("HF_TOKEN", " hf_secret\n");
  const ScopedVariable offline("HF_HUB_OFFLINE", "YES");
  const HubOptions options = HubOptions::from_environment();
  EXPECT_EQ(options.endpoint, "http://127.0.0.1:8080");
  EXPECT_EQ(options.cache, "/data/hf/hub");
  EXPECT_EQ(options.token, "hf_secret");
  EXPECT_TRUE(options.offline);
}

TEST(HubOptions, CacheVariableWinsOverHome) {
  const BareEnvironment bare;
  const ScopedVariable home("HF_HOME", "/data/hf");
  const ScopedVariable cache("HF_HUB_CACHE", "/other/hub");
  EXPECT_EQ(HubOptions::from_environment().cache, "/other/hub");
}

TEST_F(HubTest, TokenIsReadFromTheFileThatLoggingInLeaves) {
  const BareEnvironment bare;
  const ScopedVariable home("HF_HOME", folder_.c_str());
  write(folder_ / "token", "hf_of_file\n");
  EXPECT_EQ(HubOptions::from_environment().token, "hf_of_file");
}

TEST(HubOptions, RefuseATokenThatWouldAddHeaders) {
  const BareEnvironment bare;
  const ScopedVariable token("HF_TOKEN", "a\r\nX-Other: b");
  const auto error = error_of([] { HubOptions::from_environment(); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::kUsage);
  EXPECT_THAT(error->what(), AllOf(HasSubstr("HF_TOKEN"), testing::Not(HasSubstr("X-Other"))));
}

TEST(HubOptions, RefuseAnEndpointThatIsNotHttp) {
  const BareEnvironment bare;
  for (const char* text : {"ftp://hub", "file:///etc", "hub"}) {
    const ScopedVariable endpoint("HF_ENDPOINT", text);
    const auto error = error_of([] { HubOptions::from_environment(); });
    // "hub" alone is taken as a host by URL parsers that guess; ours must not guess.
    ASSERT_TRUE(error) << text;
    EXPECT_EQ(error->kind(), ErrorKind::kUsage) << text;
  }
}

TEST_F(HubTest, OfflineFindsAFileOfTheCache) {
  write(folder_ / "models--org--name" / "refs" / "main", kCommit);
  write(folder_ / "models--org--name" / "snapshots" / kCommit / "sub" / "a.json", "{}");
  const fs::path path = hub_file(offline(), HubRepoKind::kModel, {"org/name", "main"}, "sub/a.json", no_progress());
  EXPECT_EQ(path, folder_ / "models--org--name" / "snapshots" / kCommit / "sub" / "a.json");
}

TEST_F(HubTest, OfflineSaysWhichFileIsNotThere) {
  const auto error =
      error_of([&] { hub_file(offline(), HubRepoKind::kDataset, {"org/name", "main"}, "a.zip", no_progress()); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::kMissingData);
  EXPECT_THAT(error->what(), AllOf(HasSubstr("org/name@main"), HasSubstr("a.zip"), HasSubstr("HF_HUB_OFFLINE")));
}

TEST_F(HubTest, DanglingLinkOfTheCacheIsNoFile) {
  const fs::path snapshot = folder_ / "models--org--name" / "snapshots" / kCommit;
  fs::create_directories(snapshot);
  fs::create_symlink("../../blobs/gone", snapshot / "a.json");
  EXPECT_FALSE(HubRepoCache(folder_, HubRepoKind::kModel, "org/name").find(kCommit, "a.json"));
}

TEST_F(HubTest, BrokenRefIsNamed) {
  write(folder_ / "models--org--name" / "refs" / "main", "../../../etc");
  const auto error =
      error_of([&] { hub_file(offline(), HubRepoKind::kModel, {"org/name", "main"}, "a.json", no_progress()); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::kBadInput);
  EXPECT_THAT(error->what(), HasSubstr("refs/main"));
}

TEST_F(HubTest, FileNamesThatLeaveTheRepositoryAreRefused) {
  const auto error =
      error_of([&] { hub_file(offline(), HubRepoKind::kModel, {"org/name", "main"}, "../x", no_progress()); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::kUsage);
}

TEST_F(HubTest, IdsThatWereNotParsedAreCheckedToo) {
  const auto error =
      error_of([&] { hub_file(offline(), HubRepoKind::kModel, {"../../x", "main"}, "a", no_progress()); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::kUsage);
}

TEST_F(HubTest, OfflineModelNamesTheShardThatIsMissing) {
  const fs::path repo = folder_ / "models--org--name";
  write(repo / "refs" / "main", kCommit);
  write(repo / "snapshots" / kCommit / "config.json", "{}");
  write(repo / "snapshots" / kCommit / "model.safetensors.index.json",
        R"({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})");
  write(repo / "snapshots" / kCommit / "one.safetensors", "x");
  const auto error = error_of([&] { hub_model(offline(), {"org/name", "main"}, no_progress()); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::kMissingData);
  EXPECT_THAT(error->what(), HasSubstr("two.safetensors"));
}

TEST_F(HubTest, LinksOfSubfoldersClimbHighEnough) {
  const HubRepoCache cache(folder_, HubRepoKind::kModel, "org/name");
  write(cache.blob("abc"), "content");
  const fs::path path = cache.link(kCommit, "one/two/file", "abc");
  EXPECT_EQ(fs::read_symlink(path), "../../../../blobs/abc");
  EXPECT_EQ(fs::file_size(path), 7u);
}

TEST_F(HubTest, SecondHolderWaitsForTheLock) {
  const fs::path path = folder_ / ".locks" / "x" / "a.lock";
  auto first = std::make_unique<HubLock>(path, "a");
  // What the second holder did first: it said that it waits, or it held a lock that another one holds.
  std::promise<std::string> happened;
  std::atomic_flag has_happened;
  const auto happens = [&](const std::string& what) {
    if (!has_happened.test_and_set()) happened.set_value(what);
  };
  set_log_handler([&](LogLevel, const std::string& message) { happens(message); });
  std::thread other([&] {
    const HubLock second(path, "a");
    happens("taken");
  });
  EXPECT_THAT(happened.get_future().get(), HasSubstr("waiting for it"));
  first.reset();
  other.join();  // it holds the lock at last
  set_log_handler({});
}

TEST(Backoff, WaitsTwiceAsLongEachTimeUpToALimit) {
  std::vector<int64_t> pauses;
  Backoff backoff(9, [&](std::chrono::milliseconds pause) { pauses.push_back(pause.count()); });
  while (backoff.wait(HttpReply())) {
  }
  EXPECT_THAT(pauses, ElementsAre(500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000));
  backoff.reset();
  EXPECT_TRUE(backoff.wait(HttpReply()));
  EXPECT_EQ(pauses.back(), 500);
}

TEST(Backoff, WaitsAsLongAsTheServerSaysUpToALimit) {
  std::vector<int64_t> pauses;
  Backoff backoff(4, [&](std::chrono::milliseconds pause) { pauses.push_back(pause.count()); });
  for (const char* said : {"2", "0", "3600", "Wed, 21 Oct 2015 07:28:00 GMT"}) {
    HttpReply reply;
    reply.status = 429;
    reply.headers = {{"retry-after", said}};
    EXPECT_TRUE(backoff.wait(reply)) << said;
  }
  EXPECT_THAT(pauses, ElementsAre(2000, 0, 60000, 4000));  // a date is not read
}

TEST(HubFileInfo, PrefersTheHeadersOfTheLinkedFile) {
  HttpReply reply;
  reply.status = 302;
  reply.headers = {{"x-repo-commit", kCommit},
                   {"x-linked-etag", "\"" + std::string(64, 'a') + "\""},
                   {"etag", "\"other\""},
                   {"x-linked-size", "123"},
                   {"content-length", "7"}};
  const HubFileInfo info = read_file_info(reply);
  EXPECT_EQ(info.etag, std::string(64, 'a'));
  EXPECT_EQ(info.size, 123u);
}

TEST(HubFileInfo, StripsTheMarkOfWeakEtags) {
  HttpReply reply;
  reply.status = 200;
  reply.headers = {{"x-repo-commit", kCommit}, {"etag", "W/\"abc\""}, {"content-length", "7"}};
  EXPECT_EQ(read_file_info(reply).etag, "abc");
  EXPECT_EQ(read_file_info(reply).size, 7u);
}

TEST(HubFileInfo, DoesNotTakeTheLengthOfARedirectForTheFiles) {
  HttpReply reply;
  reply.status = 302;
  reply.headers = {{"x-repo-commit", kCommit}, {"etag", "\"abc\""}, {"content-length", "7"}};
  EXPECT_FALSE(read_file_info(reply).size);
}

TEST(HubFileInfo, RefusesEtagsThatAreNoFileNames) {
  for (const char* etag : {"", "\"\"", "../x", "a/b", ".hidden", "a b"}) {
    HttpReply reply;
    reply.status = 200;
    reply.headers = {{"x-repo-commit", kCommit}, {"etag", etag}};
    EXPECT_TRUE(error_of([&] { read_file_info(reply); })) << etag;
  }
}

TEST(HubFileInfo, RefusesSizesThatAreNone) {
  for (const char* size : {"-1", "1x", "99999999999999999999999", "0x10"}) {
    HttpReply reply;
    reply.status = 200;
    reply.headers = {{"x-repo-commit", kCommit}, {"etag", "abc"}, {"content-length", size}};
    EXPECT_TRUE(error_of([&] { read_file_info(reply); })) << size;
  }
}

TEST(Redirect, ResolvesRelativePlaces) {
  EXPECT_EQ(resolve_redirect("https://hub.example/a/b", "/c/d?x=1"), "https://hub.example/c/d?x=1");
  EXPECT_EQ(resolve_redirect("https://hub.example/a", "https://cdn.example/f"), "https://cdn.example/f");
}

TEST(Redirect, IsNotFollowedToOtherProtocolsOrDownFromHttps) {
  EXPECT_EQ(resolve_redirect("https://hub.example/a", "http://hub.example/a"), "");
  EXPECT_EQ(resolve_redirect("http://hub.example/a", "file:///etc/passwd"), "");
  EXPECT_EQ(resolve_redirect("http://hub.example/a", "ftp://hub.example/a"), "");
  EXPECT_EQ(resolve_redirect("http://hub.example/a", ""), "");
}

TEST(Origin, HasTheDefaultPortAndIgnoresCase) {
  EXPECT_EQ(url_origin("https://Hub.Example/x"), url_origin("https://hub.example:443/y"));
  EXPECT_NE(url_origin("https://hub.example"), url_origin("https://hub.example:8443"));
  EXPECT_NE(url_origin("https://hub.example"), url_origin("http://hub.example:443"));
  EXPECT_EQ(url_origin("file:///x"), "");
}

TEST(UrlPath, EncodesWhatWouldChangeTheUrl) { EXPECT_EQ(url_encode_path("a b/c?d#e%"), "a%20b/c%3Fd%23e%25"); }

}  // namespace
}  // namespace dynslice
