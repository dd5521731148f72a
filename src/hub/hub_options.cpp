// What the environment says about the hub, and how its repositories are named.
#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <string_view>
#include <system_error>

#include "dynslice/hub/http_client.h"
#include "dynslice/hub/hub.h"
#include "dynslice/support/environment.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxTokenBytes = 64 * 1024;
constexpr size_t kMaxNameLength = 96;  // the hub's own limit

std::string trimmed(const std::string& text) {
  const auto first = text.find_first_not_of(" \t\r\n");
  if (first == std::string::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

fs::path home_relative(const std::string& path) {
  if (path == "~" || path.starts_with("~/")) return environment("HOME") + path.substr(1);
  return path;
}

fs::path hub_home() {
  if (const std::string home = environment("HF_HOME"); !home.empty()) return home_relative(home);
  if (const std::string cache = environment("XDG_CACHE_HOME"); !cache.empty())
    return home_relative(cache) / "huggingface";
  return home_relative("~/.cache/huggingface");
}

std::string endpoint_from_environment() {
  std::string endpoint = trimmed(environment("HF_ENDPOINT"));
  if (endpoint.empty()) return "https://huggingface.co";
  while (endpoint.ends_with('/')) endpoint.pop_back();
  if (url_origin(endpoint).empty()) {
    throw_error(ErrorKind::kUsage, "HF_ENDPOINT is \"", endpoint,
                "\"; it must be a URL such as https://huggingface.co");
  }
  return endpoint;
}

std::string token_from_environment() {
  std::string token = trimmed(environment("HF_TOKEN"));
  const fs::path file = hub_home() / "token";
  std::error_code error;
  if (token.empty() && fs::is_regular_file(file, error)) token = trimmed(read_file(file, kMaxTokenBytes));
  // A line break would smuggle further headers into every request.
  const bool clean = std::all_of(token.begin(), token.end(), [](char c) { return c > 32 && c < 127; });
  if (!clean) {
    throw_error(ErrorKind::kUsage, environment("HF_TOKEN").empty() ? file.string() : "HF_TOKEN",
                ": the token has spaces or control characters in it; set HF_TOKEN to the token alone");
  }
  return token;
}

bool is_true(std::string value) {
  std::transform(value.begin(), value.end(), value.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return value == "1" || value == "true" || value == "yes" || value == "on";
}

bool has_hub_characters(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
  });
}

// As the hub names things: "--" is kept for the cache's folder names, and "./x" or "x/.." are paths.
bool is_hub_name(std::string_view text) {
  if (text.empty() || text.size() > kMaxNameLength || !has_hub_characters(text)) return false;
  const auto edge = [](char c) { return c == '.' || c == '-'; };
  return !edge(text.front()) && !edge(text.back()) && text.find("..") == std::string_view::npos &&
         text.find("--") == std::string_view::npos;
}

bool is_revision(std::string_view text) {
  return !text.empty() && text.size() <= kMaxNameLength && has_hub_characters(text) && text.front() != '.' &&
         text.front() != '-' && text.find("..") == std::string_view::npos;
}

}  // namespace

HubOptions HubOptions::from_environment() {
  HubOptions options;
  options.endpoint = endpoint_from_environment();
  options.token = token_from_environment();
  const std::string cache = environment("HF_HUB_CACHE");
  options.cache = cache.empty() ? hub_home() / "hub" : home_relative(cache);
  options.offline = is_true(environment("HF_HUB_OFFLINE"));
  return options;
}

std::optional<HubId> parse_hub_id(const std::string& text) {
  HubId id;
  const auto at = text.find('@');
  id.repo = text.substr(0, at);
  if (at != std::string::npos) id.revision = text.substr(at + 1);
  const auto slash = id.repo.find('/');
  if (slash == std::string::npos) return std::nullopt;
  const std::string_view repo = id.repo;
  if (!is_hub_name(repo.substr(0, slash)) || !is_hub_name(repo.substr(slash + 1))) return std::nullopt;
  if (!is_revision(id.revision)) return std::nullopt;
  return id;
}

}  // namespace dynslice
