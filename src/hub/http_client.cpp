#include "dynslice/hub/http_client.h"

#include <curl/curl.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <exception>
#include <optional>
#include <utility>

#include "dynslice/support/environment.h"
#include "dynslice/support/error.h"
#include "dynslice/support/progress.h"

namespace dynslice {
namespace {

constexpr int kMaxRedirects = 10;
constexpr long kConnectTimeoutSeconds = 10;
constexpr long kStallSeconds = 30;
// A hub sends a few dozen headers; more is not a hub.
constexpr size_t kMaxHeaders = 256;
constexpr size_t kMaxHeaderBytes = 16 * 1024;

using UrlHandle = std::unique_ptr<CURLU, decltype(&curl_url_cleanup)>;
using HeaderList = std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)>;

std::string lower_case(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

std::string url_part(CURLU* url, CURLUPart part, unsigned int flags = 0) {
  char* text = nullptr;
  if (curl_url_get(url, part, &text, flags) != CURLUE_OK) return {};
  std::string result(text);
  curl_free(text);
  return result;
}

bool is_http(const std::string& scheme) { return scheme == "http" || scheme == "https"; }

bool is_redirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

HttpTrouble trouble_of(CURL* handle, CURLcode code) {
  curl_off_t connected_after = 0;
  curl_easy_getinfo(handle, CURLINFO_PRETRANSFER_TIME_T, &connected_after);
  switch (code) {
    case CURLE_OK:
      return HttpTrouble::kNone;
    // One code for both timeouts: before there is a connection, and of a transfer that stalls.
    case CURLE_OPERATION_TIMEDOUT:
      return connected_after == 0 ? HttpTrouble::kUnreachable : HttpTrouble::kBroken;
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_CONNECT:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
      return HttpTrouble::kUnreachable;
    default:
      return HttpTrouble::kBroken;
  }
}

// libcurl knows only the bundle it was built with; these two are what its command line and OpenSSL honour.
std::string certificate_bundle() {
  const std::string bundle = environment("CURL_CA_BUNDLE");
  return bundle.empty() ? environment("SSL_CERT_FILE") : bundle;
}

template <typename Value>
void set_option(CURL* handle, CURLoption option, Value value) {
  if (curl_easy_setopt(handle, option, value) != CURLE_OK) {
    throw_error(ErrorKind::kOutOfResources, "libcurl refuses option ", static_cast<int>(option),
                "; its version is too old for downloads");
  }
}

void append_header(HeaderList& list, const std::string& line) {
  curl_slist* longer = curl_slist_append(list.get(), line.c_str());
  if (longer == nullptr) throw_error(ErrorKind::kOutOfResources, "out of memory for an HTTP request");
  (void)list.release();
  list.reset(longer);
}

}  // namespace

// What the callbacks of one request share. libcurl is C: no exception may cross it, so they are kept here.
struct HttpClient::Exchange {
  HttpReply reply;
  const HttpBody* body = nullptr;
  std::exception_ptr failure;

  // An exception stops the transfer: fewer bytes taken than given.
  template <typename Action>
  size_t guarded(size_t bytes, Action action) {
    try {
      action();
      return bytes;
    } catch (...) {
      failure = std::current_exception();
      return bytes == 0 ? 1 : 0;
    }
  }

  static size_t on_header(char* line, size_t size, size_t count, void* self) {
    auto& exchange = *static_cast<Exchange*>(self);
    return exchange.guarded(size * count, [&] { exchange.take_header(std::string_view(line, size * count)); });
  }

  static size_t on_body(char* bytes, size_t size, size_t count, void* self) {
    auto& exchange = *static_cast<Exchange*>(self);
    return exchange.guarded(size * count, [&] {
      const bool wanted = exchange.body != nullptr && exchange.reply.status / 100 == 2;
      if (wanted) (*exchange.body)(exchange.reply, std::string_view(bytes, size * count));
    });
  }

  static int on_progress(void*, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
    return interrupt_requested() ? 1 : 0;
  }

  void take_header(std::string_view line) {
    line = trimmed(line);
    if (line.starts_with("HTTP/")) {  // also after a 100 Continue: the last reply counts
      reply.headers.clear();
      const auto space = line.find(' ');
      reply.status = space == std::string_view::npos ? 0 : std::atoi(std::string(line.substr(space + 1, 3)).c_str());
      return;
    }
    const auto colon = line.find(':');
    if (colon == std::string_view::npos || colon == 0) return;
    if (line.size() > kMaxHeaderBytes || reply.headers.size() >= kMaxHeaders) {
      throw_error(ErrorKind::kMissingData, reply.url, ": sends more headers than a hub does; check HF_ENDPOINT");
    }
    reply.headers[lower_case(std::string(line.substr(0, colon)))] = std::string(trimmed(line.substr(colon + 1)));
  }
};

std::string HttpReply::header(const std::string& lower_case_name) const {
  const auto found = headers.find(lower_case_name);
  return found == headers.end() ? std::string() : found->second;
}

bool HttpReply::is_temporary() const {
  return trouble != HttpTrouble::kNone || status == 408 || status == 429 || status / 100 == 5;
}

std::string HttpReply::describe() const {
  return trouble == HttpTrouble::kNone ? "HTTP " + std::to_string(status) : reason;
}

HttpClient::HttpClient(std::string token_url, std::string token)
    : token_origin_(url_origin(token_url)), token_(std::move(token)), handle_(nullptr, curl_easy_cleanup) {
  static const CURLcode initialized = curl_global_init(CURL_GLOBAL_DEFAULT);
  if (initialized == CURLE_OK) handle_.reset(curl_easy_init());
  if (handle_ == nullptr) throw_error(ErrorKind::kOutOfResources, "libcurl cannot be started");
}

HttpClient::~HttpClient() = default;

HttpReply HttpClient::perform(const std::string& url, uint64_t first_byte, const HttpBody* body) {
  check_interrupt();
  CURL* handle = handle_.get();
  curl_easy_reset(handle);  // keeps the connections
  Exchange exchange;
  exchange.reply.url = url;
  exchange.body = body;
  std::array<char, CURL_ERROR_SIZE> message{};
  HeaderList headers(nullptr, curl_slist_free_all);
  // Compressed bytes would have another size, another ETag and no ranges.
  append_header(headers, "Accept-Encoding: identity");
  if (!token_.empty() && url_origin(url) == token_origin_) append_header(headers, "Authorization: Bearer " + token_);

  set_option(handle, CURLOPT_URL, url.c_str());
  set_option(handle, CURLOPT_PROTOCOLS_STR, "http,https");
  set_option(handle, CURLOPT_FOLLOWLOCATION, 0L);
  set_option(handle, CURLOPT_NOSIGNAL, 1L);
  set_option(handle, CURLOPT_USERAGENT, "dynslice/" DYNSLICE_VERSION);
  set_option(handle, CURLOPT_CONNECTTIMEOUT, kConnectTimeoutSeconds);
  set_option(handle, CURLOPT_LOW_SPEED_LIMIT, 1L);
  set_option(handle, CURLOPT_LOW_SPEED_TIME, kStallSeconds);
  set_option(handle, CURLOPT_ERRORBUFFER, message.data());
  set_option(handle, CURLOPT_HTTPHEADER, headers.get());
  set_option(handle, CURLOPT_HEADERFUNCTION, &Exchange::on_header);
  set_option(handle, CURLOPT_HEADERDATA, &exchange);
  set_option(handle, CURLOPT_WRITEFUNCTION, &Exchange::on_body);
  set_option(handle, CURLOPT_WRITEDATA, &exchange);
  set_option(handle, CURLOPT_NOPROGRESS, 0L);
  set_option(handle, CURLOPT_XFERINFOFUNCTION, &Exchange::on_progress);
  if (const std::string bundle = certificate_bundle(); !bundle.empty()) {
    set_option(handle, CURLOPT_CAINFO, bundle.c_str());  // which libcurl copies
  }
  if (body == nullptr) set_option(handle, CURLOPT_NOBODY, 1L);
  const std::string range = std::to_string(first_byte) + "-";
  if (first_byte > 0) set_option(handle, CURLOPT_RANGE, range.c_str());

  const CURLcode code = curl_easy_perform(handle);
  if (exchange.failure) std::rethrow_exception(exchange.failure);
  check_interrupt();
  exchange.reply.trouble = trouble_of(handle, code);
  if (code != CURLE_OK) exchange.reply.reason = message[0] != '\0' ? message.data() : curl_easy_strerror(code);
  return std::move(exchange.reply);
}

HttpReply HttpClient::head(const std::string& url) {
  std::map<std::string, std::string> headers;
  std::string target = url;
  for (int hop = 0; hop <= kMaxRedirects; ++hop) {
    HttpReply reply = perform(target, 0, nullptr);
    const std::string location = reply.header("location");
    for (auto& [name, value] : reply.headers) headers[name] = std::move(value);
    reply.headers = headers;
    const bool relative = location.starts_with("/") && !location.starts_with("//");
    if (reply.trouble != HttpTrouble::kNone || !is_redirect(reply.status) || !relative) return reply;
    if (!reply.header("x-linked-etag").empty()) return reply;  // all that was asked for is there
    target = resolve_redirect(target, location);
  }
  throw_error(ErrorKind::kMissingData, url, ": is redirected more than ", kMaxRedirects, " times; check HF_ENDPOINT");
}

HttpReply HttpClient::get(const std::string& url, uint64_t first_byte, const HttpBody& body) {
  std::string target = url;
  for (int hop = 0; hop <= kMaxRedirects; ++hop) {
    HttpReply reply = perform(target, first_byte, &body);
    if (reply.trouble != HttpTrouble::kNone || !is_redirect(reply.status)) return reply;
    const std::string location = reply.header("location");
    std::string next = resolve_redirect(target, location);
    if (next.empty()) {
      throw_error(ErrorKind::kMissingData, target, ": is redirected to ", location.empty() ? "nowhere" : location,
                  ", which is not followed (http or https only, and never from https to http); check HF_ENDPOINT");
    }
    target = std::move(next);
  }
  throw_error(ErrorKind::kMissingData, url, ": is redirected more than ", kMaxRedirects, " times; check HF_ENDPOINT");
}

std::string resolve_redirect(const std::string& base, const std::string& location) {
  const UrlHandle url(curl_url(), curl_url_cleanup);
  if (location.empty() || url == nullptr) return {};
  if (curl_url_set(url.get(), CURLUPART_URL, base.c_str(), 0) != CURLUE_OK) return {};
  const std::string base_scheme = url_part(url.get(), CURLUPART_SCHEME);
  // Set on a handle that holds a URL, a relative one is resolved against it.
  if (curl_url_set(url.get(), CURLUPART_URL, location.c_str(), CURLU_NON_SUPPORT_SCHEME) != CURLUE_OK) return {};
  const std::string scheme = url_part(url.get(), CURLUPART_SCHEME);
  if (!is_http(scheme) || (base_scheme == "https" && scheme == "http")) return {};
  return url_part(url.get(), CURLUPART_URL);
}

std::string url_origin(const std::string& url) {
  const UrlHandle handle(curl_url(), curl_url_cleanup);
  if (handle == nullptr || curl_url_set(handle.get(), CURLUPART_URL, url.c_str(), 0) != CURLUE_OK) return {};
  const std::string scheme = url_part(handle.get(), CURLUPART_SCHEME);
  if (!is_http(scheme)) return {};
  return lower_case(scheme + "://" + url_part(handle.get(), CURLUPART_HOST) + ":" +
                    url_part(handle.get(), CURLUPART_PORT, CURLU_DEFAULT_PORT));
}

std::string url_encode_path(std::string_view path) {
  static constexpr std::string_view kDigits = "0123456789ABCDEF";
  std::string encoded;
  for (const char c : path) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain =
        byte < 128 && (std::isalnum(byte) != 0 || std::string_view("-._~/").find(c) != std::string_view::npos);
    if (plain) {
      encoded += c;
    } else {
      encoded += '%';
      encoded += kDigits[byte >> 4];
      encoded += kDigits[byte & 15];
    }
  }
  return encoded;
}

}  // namespace dynslice
