// Talks to one hub: asks what a file is, lists a repository, and brings blobs into the cache whole.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "dynslice/hub/http_client.h"
#include "dynslice/hub/hub.h"
#include "dynslice/support/progress.h"

namespace dynslice {

// What the hub says about a file before it is downloaded.
struct HubFileInfo {
  std::string commit;  // 40 hexadecimal digits
  std::string etag;    // SHA-256 (LFS), git SHA-1, or another name that is safe as a file name
  std::optional<uint64_t> size;
};

// A blob on its way into the cache.
struct HubTransfer {
  std::string url;
  std::string what;  // "model.safetensors of org/name", for messages
  std::filesystem::path partial;
  std::filesystem::path blob;
  std::string etag;
  std::optional<uint64_t> size;
};

// Sleeps between attempts: 0.5 s, 1 s, 2 s ... up to 30 s, or what the server's Retry-After says, up to 60 s.
class Backoff {
 public:
  using Sleep = std::function<void(std::chrono::milliseconds)>;
  // Sleeps as long as it is told; throws Error(kInterrupted) once interruption was requested.
  static void sleep_for(std::chrono::milliseconds pause);

  // `sleep` is another one in tests only.
  explicit Backoff(int retries, Sleep sleep = Backoff::sleep_for)
      : retries_(retries), left_(retries), sleep_(std::move(sleep)) {}
  // Sleeps and returns true; false when no retry is left.
  bool wait(const HttpReply& reply);
  void reset() { left_ = retries_; }

 private:
  int retries_;
  int left_;
  Sleep sleep_;
};

class HubConnection {
 public:
  explicit HubConnection(const HubOptions& options);

  [[nodiscard]] std::string file_url(HubRepoKind kind, const HubId& id, const std::string& file) const;
  [[nodiscard]] std::string listing_url(HubRepoKind kind, const HubId& id) const;

  // The reply may be any; a temporary one was retried `retries` times, a hub that cannot be reached was not.
  HttpReply ask(const std::string& url, int retries);
  // As `ask`, with the body of a 2xx reply of at most `max_bytes` (else kBadInput).
  HttpReply fetch_text(const std::string& url, int retries, size_t max_bytes, std::string& text);
  // Downloads, resumes, verifies and renames. The partial file stays when the transfer broke or was
  // interrupted, and goes when its content is wrong.
  void download(const HubTransfer& transfer, ProgressSink& progress);

 private:
  void transfer_bytes(const HubTransfer& transfer, ProgressSink& progress);
  template <typename Attempt>
  HttpReply with_retries(int retries, Attempt attempt);

  const HubOptions& options_;
  HttpClient client_;
};

// Reads X-Repo-Commit, X-Linked-Etag or ETag, X-Linked-Size or Content-Length. Throws kMissingData when the
// server is no hub, kBadInput when a header is not what it must be.
[[nodiscard]] HubFileInfo read_file_info(const HttpReply& reply);

// Whether a reply to HEAD describes a file: 2xx, or a redirect to where it lies.
[[nodiscard]] bool is_file_reply(const HttpReply& reply);

// Throws kMissingData for a reply that is not what was asked for, saying what was missing and how to mend it.
[[noreturn]] void throw_hub_error(const HubOptions& options, const HubId& id, const std::string& what,
                                  const HttpReply& reply);

}  // namespace dynslice
