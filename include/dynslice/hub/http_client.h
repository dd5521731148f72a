// HTTP as the hub needs it: HEAD and GET over http(s), with redirects followed by hand so that the token
// never leaves the host it was meant for.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

namespace dynslice {

enum class HttpTrouble {
  kNone,         // a reply came, whatever its status
  kUnreachable,  // no connection: name not resolved, refused, TLS refused, connect timeout
  kBroken,       // the connection was lost or stalled on the way
};

struct HttpReply {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string url;                             // the last one asked
  HttpTrouble trouble = HttpTrouble::kNone;
  std::string reason;  // one line about the trouble, for people

  [[nodiscard]] std::string header(const std::string& lower_case_name) const;
  // Whether the same request may succeed later: trouble, 408, 429 or 5xx.
  [[nodiscard]] bool is_temporary() const;
  // "HTTP 503" or the reason of the trouble.
  [[nodiscard]] std::string describe() const;
};

// Receives the body of a 2xx reply piece by piece; `head` has status and headers. What it throws stops the
// transfer and comes out of HttpClient::get.
using HttpBody = std::function<void(const HttpReply& head, std::string_view piece)>;

// Guarantees: only http and https; no redirect from https to http; the token goes to the origin (scheme, host,
// port) of `token_url` alone; a stalled transfer ends after 30 s; an interrupt request ends it within a second
// with Error(kInterrupted).
class HttpClient {
 public:
  HttpClient(std::string token_url, std::string token);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  // Follows a redirect only when it is relative (a renamed repository); one to another place is returned as
  // it is, with the headers of all replies on the way, the later ones winning.
  HttpReply head(const std::string& url);
  // Follows redirects. Asks for the bytes from `first_byte` on when it is not 0.
  HttpReply get(const std::string& url, uint64_t first_byte, const HttpBody& body);

 private:
  struct Exchange;
  HttpReply perform(const std::string& url, uint64_t first_byte, const HttpBody* body);

  std::string token_origin_;
  std::string token_;
  std::unique_ptr<void, void (*)(void*)> handle_;
};

// `location` as seen from `base`; empty when it is not an http(s) URL or steps down from https to http.
[[nodiscard]] std::string resolve_redirect(const std::string& base, const std::string& location);

// "https://host:port" in lower case; empty when `url` is not an http(s) URL.
[[nodiscard]] std::string url_origin(const std::string& url);

// `path` with everything but unreserved characters and '/' percent-encoded.
[[nodiscard]] std::string url_encode_path(std::string_view path);

}  // namespace dynslice
