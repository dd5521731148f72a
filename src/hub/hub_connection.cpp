#include "dynslice/hub/hub_connection.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <span>
#include <string_view>
#include <system_error>
#include <thread>

#include "dynslice/hub/hub_cache.h"
#include "dynslice/support/error.h"
#include "dynslice/support/file.h"
#include "dynslice/support/files.h"
#include "dynslice/support/hash.h"
#include "dynslice/support/system_error.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxRetryAfterSeconds = 60;
constexpr int kMaxBackoffMilliseconds = 30'000;
// An attempt that brought this much earns the full number of retries again: 100 GB over a bad line.
constexpr uint64_t kProgressThatCounts = 1 << 20;
constexpr size_t kMaxEtagLength = 128;

std::optional<uint64_t> parse_number(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

bool is_hexadecimal(std::string_view text, size_t length) {
  return text.size() == length && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

// `W/"abc"` and `"abc"` are abc.
std::string plain_etag(std::string etag) {
  if (etag.starts_with("W/")) etag.erase(0, 2);
  std::erase(etag, '"');
  return etag;
}

bool is_safe_etag(std::string_view etag) {
  if (etag.empty() || etag.size() > kMaxEtagLength || etag.front() == '.') return false;
  return std::all_of(etag.begin(), etag.end(), [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
  });
}

// The file that a download grows in.
class PartialFile {
 public:
  explicit PartialFile(const fs::path& path) : path_(path), file_(path, O_WRONLY | O_CREAT | O_NOFOLLOW) {
    struct stat status{};
    if (!file_.is_open() || ::fstat(file_.descriptor(), &status) != 0) fail();
    size_ = static_cast<uint64_t>(status.st_size);
  }

  uint64_t size() const { return size_; }

  void restart() {
    if (::ftruncate(file_.descriptor(), 0) != 0) fail();
    size_ = 0;
  }

  void append(std::string_view bytes) {
    if (!file_.write_at(std::as_bytes(std::span(bytes)), size_)) fail();
    size_ += bytes.size();
  }

  void sync() {
    if (!file_.sync()) fail();
  }

 private:
  [[noreturn]] void fail() const {
    const int code = errno;
    throw_error(error_kind_of(code), path_.string(), ": cannot be written (", std::strerror(code),
                is_disk_full(code) ? "); free disk space and run again: the download goes on from there"
                                   : "); set HF_HOME to a folder that can be written");
  }

  fs::path path_;
  File file_;
  uint64_t size_ = 0;
};

void check_room(const HubTransfer& transfer, uint64_t have) {
  std::error_code error;
  const fs::space_info space = fs::space(transfer.partial.parent_path(), error);
  if (error || !transfer.size || *transfer.size - have <= space.available) return;
  throw_error(ErrorKind::kOutOfResources, transfer.what, ": needs ", *transfer.size - have, " more bytes in ",
              transfer.partial.parent_path().string(), ", where ", space.available,
              " are free; free disk space or set HF_HOME to a larger disk");
}

// The checksum is the ETag itself; an ETag of another form leaves only the size, checked before.
void verify_checksum(const HubTransfer& transfer) {
  std::string found = transfer.etag;
  if (is_hexadecimal(transfer.etag, 64)) found = sha256_of_file(transfer.partial);
  if (is_hexadecimal(transfer.etag, 40)) found = git_blob_sha1_of_file(transfer.partial);
  if (found == transfer.etag) return;
  std::error_code ignored;
  fs::remove(transfer.partial, ignored);
  throw_error(ErrorKind::kBadInput, transfer.what, ": what came does not match its checksum (expected ", transfer.etag,
              ", found ", found, "); the download was deleted, run again to repeat it");
}

// Puts the pieces of one attempt into the partial file, starting over when the server ignored the range.
class PieceSink {
 public:
  PieceSink(const HubTransfer& transfer, PartialFile& partial, ProgressTask& task, uint64_t& reported)
      : transfer_(transfer), partial_(partial), task_(task), reported_(reported), asked_from_(partial.size()) {}

  void take(const HttpReply& head, std::string_view piece) {
    if (!begun_) begin(head);
    if (transfer_.size && piece.size() > *transfer_.size - partial_.size()) {
      partial_.restart();
      throw_error(ErrorKind::kBadInput, transfer_.what, ": the hub sends more than the ", *transfer_.size,
                  " bytes it announced; the download was deleted, run again to repeat it");
    }
    partial_.append(piece);
    // Bytes that come again after a restart were counted before.
    if (partial_.size() <= reported_) return;
    const uint64_t gain = partial_.size() - reported_;
    reported_ = partial_.size();
    task_.advance(static_cast<int64_t>(gain));
  }

 private:
  void begin(const HttpReply& head) {
    begun_ = true;
    if (head.status != 206) {
      if (asked_from_ > 0) partial_.restart();
      return;
    }
    const std::string range = head.header("content-range");
    if (range.starts_with("bytes " + std::to_string(asked_from_) + "-")) return;
    throw_error(ErrorKind::kBadInput, transfer_.what, ": asked for the bytes from ", asked_from_,
                " on, the hub sends \"", range, "\"; delete ", transfer_.partial.string(), " and run again");
  }

  const HubTransfer& transfer_;
  PartialFile& partial_;
  ProgressTask& task_;
  uint64_t& reported_;
  uint64_t asked_from_;
  bool begun_ = false;
};

}  // namespace

void Backoff::sleep_for(std::chrono::milliseconds pause) {
  const auto until = std::chrono::steady_clock::now() + pause;
  while (std::chrono::steady_clock::now() < until) {
    check_interrupt();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

bool Backoff::wait(const HttpReply& reply) {
  if (left_ <= 0) return false;
  const int attempt = std::min(retries_ - left_, 16);
  --left_;
  auto pause = std::chrono::milliseconds(std::min(500 << attempt, kMaxBackoffMilliseconds));
  if (const auto seconds = parse_number(reply.header("retry-after"))) {
    pause = std::chrono::seconds(std::min<uint64_t>(*seconds, kMaxRetryAfterSeconds));
  }
  sleep_(pause);
  return true;
}

HubConnection::HubConnection(const HubOptions& options) : options_(options), client_(options.endpoint, options.token) {}

std::string HubConnection::file_url(HubRepoKind kind, const HubId& id, const std::string& file) const {
  return options_.endpoint + (kind == HubRepoKind::kDataset ? "/datasets/" : "/") + id.repo + "/resolve/" +
         id.revision + "/" + url_encode_path(file);
}

std::string HubConnection::listing_url(HubRepoKind kind, const HubId& id) const {
  return options_.endpoint + "/api/" + (kind == HubRepoKind::kDataset ? "datasets/" : "models/") + id.repo +
         "/revision/" + id.revision;
}

template <typename Attempt>
HttpReply HubConnection::with_retries(int retries, Attempt attempt) {
  Backoff backoff(retries);
  for (;;) {
    HttpReply reply = attempt();
    // Nobody there now: in a few seconds nobody will be there either, and the user waits.
    if (!reply.is_temporary() || reply.trouble == HttpTrouble::kUnreachable || !backoff.wait(reply)) return reply;
  }
}

HttpReply HubConnection::ask(const std::string& url, int retries) {
  return with_retries(retries, [&] { return client_.head(url); });
}

HttpReply HubConnection::fetch_text(const std::string& url, int retries, size_t max_bytes, std::string& text) {
  return with_retries(retries, [&] {
    text.clear();
    return client_.get(url, 0, [&](const HttpReply&, std::string_view piece) {
      if (piece.size() > max_bytes - text.size()) {
        throw_error(ErrorKind::kBadInput, url, ": answers with more than ", max_bytes, " bytes; check HF_ENDPOINT");
      }
      text += piece;
    });
  });
}

void HubConnection::transfer_bytes(const HubTransfer& transfer, ProgressSink& progress) {
  PartialFile partial(transfer.partial);
  // Without a size nobody can tell whether a left-over is whole.
  if (!transfer.size || partial.size() > *transfer.size) partial.restart();
  check_room(transfer, partial.size());
  ProgressTask task(progress, "downloading " + transfer.what, static_cast<int64_t>(transfer.size.value_or(0)), "bytes");
  uint64_t reported = partial.size();
  if (reported > 0) task.advance(static_cast<int64_t>(reported));
  Backoff backoff(options_.retries);
  uint64_t furthest = partial.size();
  while (partial.size() != transfer.size) {
    PieceSink sink(transfer, partial, task, reported);
    HttpReply reply = client_.get(transfer.url, partial.size(),
                                  [&](const HttpReply& head, std::string_view piece) { sink.take(head, piece); });
    const bool ended = reply.trouble == HttpTrouble::kNone && reply.status / 100 == 2;
    if (ended && !transfer.size) break;
    if (partial.size() == transfer.size) break;
    if (ended) reply.reason = "the connection ended early";
    if (reply.status == 416) partial.restart();
    if (!ended && reply.status != 416 && !reply.is_temporary()) {
      throw_error(ErrorKind::kMissingData, transfer.what, ": the hub refuses to send it (", reply.describe(),
                  "); check HF_TOKEN and run again: the download goes on after ", partial.size(), " bytes");
    }
    if (partial.size() >= furthest + kProgressThatCounts) backoff.reset();
    furthest = std::max(furthest, partial.size());
    if (backoff.wait(reply)) continue;
    throw_error(ErrorKind::kMissingData, transfer.what, ": the download broke after ", partial.size(), " bytes (",
                ended ? reply.reason : reply.describe(), ") and ", options_.retries,
                " retries did not help; run again: it goes on from there");
  }
  partial.sync();
}

void HubConnection::download(const HubTransfer& transfer, ProgressSink& progress) {
  make_folder(transfer.partial.parent_path());
  transfer_bytes(transfer, progress);
  verify_checksum(transfer);
  std::error_code error;
  fs::rename(transfer.partial, transfer.blob, error);
  if (error) {
    throw_error(error_kind_of(error.value()), transfer.blob.string(), ": cannot be made (", error.message(),
                "); set HF_HOME to a folder that can be written");
  }
  sync_path(transfer.blob.parent_path());
}

bool is_file_reply(const HttpReply& reply) {
  return reply.trouble == HttpTrouble::kNone && (reply.status / 100 == 2 || reply.status / 100 == 3);
}

HubFileInfo read_file_info(const HttpReply& reply) {
  HubFileInfo info;
  info.commit = reply.header("x-repo-commit");
  if (!is_commit_hash(info.commit)) {
    throw_error(ErrorKind::kMissingData, reply.url, ": header X-Repo-Commit is ",
                info.commit.empty() ? "missing" : "no commit",
                ", so this is not a hub; check HF_ENDPOINT and the network's sign-in page");
  }
  const std::string linked = reply.header("x-linked-etag");
  info.etag = plain_etag(linked.empty() ? reply.header("etag") : linked);
  if (!is_safe_etag(info.etag)) {
    throw_error(ErrorKind::kBadInput, reply.url, ": header ETag is ",
                info.etag.empty() ? "missing" : "not a plain name", "; a checksum was expected; check HF_ENDPOINT");
  }
  std::string size = reply.header("x-linked-size");
  // The Content-Length of a redirect is that of its own page.
  if (size.empty() && reply.status / 100 == 2) size = reply.header("content-length");
  info.size = parse_number(size);
  constexpr uint64_t kMaxSize = uint64_t{1} << 50;
  if (!size.empty() && (!info.size || *info.size > kMaxSize)) {
    throw_error(ErrorKind::kBadInput, reply.url, ": announces a size of \"", size, "\" bytes; check HF_ENDPOINT");
  }
  return info;
}

void throw_hub_error(const HubOptions& options, const HubId& id, const std::string& what, const HttpReply& reply) {
  const std::string name = id.repo + "@" + id.revision;
  const std::string page = options.endpoint + "/" + id.repo;
  if (reply.trouble != HttpTrouble::kNone) {
    throw_error(ErrorKind::kMissingData, name, ": ", what, " cannot be downloaded, no connection to ", options.endpoint,
                " (", reply.reason, "); check the network, or give the path of a local copy");
  }
  const std::string code = reply.header("x-error-code");
  if (reply.status == 401 || reply.status == 403) {
    throw_error(ErrorKind::kMissingData, name, ": no access to ", what, " (HTTP ", reply.status,
                "); check the name, accept its terms at ", page,
                " if it is gated, and set HF_TOKEN to a token that may read it");
  }
  if (code == "RepoNotFound") {
    throw_error(ErrorKind::kMissingData, name, ": no such repository at ", options.endpoint,
                " (HTTP 404); check the name, or set HF_TOKEN if it is private");
  }
  if (code == "RevisionNotFound") {
    throw_error(ErrorKind::kMissingData, name, ": no such revision (HTTP 404); see the branches and tags at ", page);
  }
  if (reply.status == 404) {
    throw_error(ErrorKind::kMissingData, name, ": ", what, " is not there (HTTP 404 from ", options.endpoint,
                "); check repository, revision and file name");
  }
  throw_error(ErrorKind::kMissingData, name, ": ", what, " cannot be downloaded (", reply.describe(), " from ",
              options.endpoint, "); try again later");
}

}  // namespace dynslice
