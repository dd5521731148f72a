#include "dynslice/hub/hub.h"

#include <algorithm>
#include <set>
#include <string_view>

#include "dynslice/hub/hub_cache.h"
#include "dynslice/hub/hub_connection.h"
#include "dynslice/support/error.h"
#include "dynslice/support/json.h"
#include "dynslice/support/log.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxListingBytes = size_t{64} << 20;
constexpr std::string_view kIndexFile = "model.safetensors.index.json";
constexpr std::string_view kSmallFiles[] = {
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json",  "special_tokens_map.json", "added_tokens.json",
    "vocab.json",     "merges.txt",      "generation_config.json", "chat_template.jinja",
};

// The files of a repository at one commit, as the hub lists them or, without a hub, as the cache has them.
struct Listing {
  std::string commit;
  std::set<std::string> files;
  bool from_cache = false;
};

void check_id(const HubId& id) {
  const auto parsed = parse_hub_id(id.repo + "@" + id.revision);
  if (parsed && parsed->repo == id.repo) return;
  throw_error(ErrorKind::kUsage, "\"", id.repo, "@", id.revision,
              "\" is no hub id; it must be of the form org/name[@revision]");
}

std::string title(const HubId& id) { return id.repo + "@" + id.revision; }

[[noreturn]] void throw_not_cached(const HubOptions& options, const HubId& id, const std::string& what) {
  throw_error(ErrorKind::kMissingData, title(id), ": ", what, " is not in the cache ", options.cache.string(),
              options.offline ? " and HF_HUB_OFFLINE forbids to download it; unset it, or give the path of a local copy"
                              : " and the hub cannot be reached; check the network, or give the path of a local copy");
}

void tell_cache_is_used(const HubOptions& options, const HubId& id, const HttpReply& reply) {
  log(LogLevel::kWarning,
      options.endpoint + " does not answer (" + reply.describe() + "): " + title(id) + " is taken from the cache");
}

Listing parse_listing(const std::string& text, const std::string& url) {
  const Json json = parse_json(text, url);
  const JsonReader reader(json, url);
  Listing listing;
  listing.commit = reader.string("sha");
  if (!is_commit_hash(listing.commit)) reader.fail("sha", "a commit of 40 hexadecimal digits");
  if (!reader.has("siblings") || !json["siblings"].is_array()) reader.fail("siblings", "a list of files");
  for (const Json& sibling : json["siblings"]) {
    std::string name = JsonReader(sibling, url + ": siblings").string("rfilename");
    if (is_safe_relative_path(name)) listing.files.insert(std::move(name));
  }
  return listing;
}

Listing list_cache(const HubOptions& options, const HubRepoCache& cache, const HubId& id) {
  const auto commit = cache.commit_of(id.revision);
  if (!commit) throw_not_cached(options, id, "the model");
  const std::vector<std::string> files = cache.files(*commit);
  return {*commit, {files.begin(), files.end()}, true};
}

Listing list_repository(const HubOptions& options, const HubRepoCache& cache, const HubId& id) {
  if (options.offline) return list_cache(options, cache, id);
  const bool cached = cache.commit_of(id.revision).has_value();
  HubConnection hub(options);
  const std::string url = hub.listing_url(HubRepoKind::kModel, id);
  std::string text;
  const HttpReply reply = hub.fetch_text(url, cached ? 0 : options.retries, kMaxListingBytes, text);
  if (cached && reply.is_temporary()) {
    tell_cache_is_used(options, id, reply);
    return list_cache(options, cache, id);
  }
  if (reply.trouble != HttpTrouble::kNone || reply.status / 100 != 2) throw_hub_error(options, id, "the model", reply);
  return parse_listing(text, url);
}

// Not a model folder: say which of the other forms of a model it holds.
[[noreturn]] void throw_no_config(const HubOptions& options, const HubId& id, const Listing& listing) {
  const auto gguf =
      std::find_if(listing.files.begin(), listing.files.end(), [](const auto& f) { return f.ends_with(".gguf"); });
  if (gguf != listing.files.end()) {
    throw_error(ErrorKind::kBadInput, title(id), ": holds GGUF files (", *gguf,
                "...) and no config.json; download one from ", options.endpoint, "/", id.repo, " and give its path");
  }
  if (listing.from_cache) throw_not_cached(options, id, "config.json");
  throw_error(ErrorKind::kMissingData, title(id), ": has no config.json, so it is no model; check the name");
}

// A value as a message shows it: on one line, in ASCII, and short whatever the file holds.
std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 80) text = text.substr(0, 77) + "...";
  return text;
}

// The files that the index names, each once.
std::vector<std::string> indexed_files(const fs::path& index) {
  const Json json = parse_json_file(index);
  const JsonReader reader(json, index.string());
  const JsonReader map = reader.object("weight_map");
  std::set<std::string> names;
  for (const auto& [tensor, file] : map.raw().items()) {
    const bool good = file.is_string() && is_safe_relative_path(file.get_ref<const std::string&>()) &&
                      file.get_ref<const std::string&>().ends_with(".safetensors");
    if (!good) {
      throw_error(ErrorKind::kBadInput, index.string(), ": weight_map: tensor ", shown(tensor),
                  " must lie in a .safetensors file inside of the model's folder, found ", shown(file));
    }
    names.insert(file.get<std::string>());
  }
  if (names.empty())
    throw_error(ErrorKind::kBadInput, index.string(), ": weight_map names no file; download the model again");
  return {names.begin(), names.end()};
}

void require_listed(const HubOptions& options, const HubId& id, const Listing& listing, const std::string& file) {
  if (listing.files.contains(file)) return;
  if (listing.from_cache) throw_not_cached(options, id, file);
  throw_error(ErrorKind::kMissingData, title(id), ": has no ", file, "; only weights in .safetensors files are read");
}

}  // namespace

fs::path hub_file(const HubOptions& options, HubRepoKind kind, const HubId& id, const std::string& file,
                  ProgressSink& progress) {
  check_id(id);
  if (!is_safe_relative_path(file)) {
    throw_error(ErrorKind::kUsage, title(id), ": \"", file,
                "\" is no file of a repository; it must be a relative path without \"..\"");
  }
  const HubRepoCache cache(options.cache, kind, id.repo);
  const auto known_commit = cache.commit_of(id.revision);
  const auto cached = known_commit ? cache.find(*known_commit, file) : std::nullopt;
  if (cached && (options.offline || is_commit_hash(id.revision))) return *cached;
  if (options.offline) throw_not_cached(options, id, file);

  HubConnection hub(options);
  const std::string url = hub.file_url(kind, id, file);
  const HttpReply reply = hub.ask(url, cached ? 0 : options.retries);
  if (cached && reply.is_temporary()) {
    tell_cache_is_used(options, id, reply);
    return *cached;
  }
  if (!is_file_reply(reply)) throw_hub_error(options, id, file, reply);
  const HubFileInfo info = read_file_info(reply);
  auto path = cache.find(info.commit, file);
  if (!path) {
    const std::string what = file + " of " + id.repo;
    const HubLock lock(cache.lock_file(info.etag), what);
    const fs::path blob = cache.blob(info.etag);
    if (!fs::exists(blob)) {
      hub.download({url, what, cache.incomplete_blob(info.etag), blob, info.etag, info.size}, progress);
    }
    path = cache.link(info.commit, file, info.etag);
  }
  cache.remember_commit(id.revision, info.commit);
  return *path;
}

fs::path hub_model(const HubOptions& options, const HubId& id, ProgressSink& progress) {
  check_id(id);
  const HubRepoCache cache(options.cache, HubRepoKind::kModel, id.repo);
  const Listing listing = list_repository(options, cache, id);
  if (!listing.files.contains("config.json")) throw_no_config(options, id, listing);
  // All files of one commit, whatever is pushed meanwhile.
  const HubId pinned{id.repo, listing.commit};
  const auto fetch = [&](const std::string& file) {
    require_listed(options, id, listing, file);
    return hub_file(options, HubRepoKind::kModel, pinned, file, progress);
  };
  fetch("config.json");
  for (const std::string_view file : kSmallFiles) {
    if (listing.files.contains(std::string(file))) fetch(std::string(file));
  }
  std::vector<std::string> weights{"model.safetensors"};
  const std::string index(kIndexFile);
  if (listing.files.contains(index)) weights = indexed_files(fetch(index));
  for (const std::string& file : weights) require_listed(options, id, listing, file);
  for (const std::string& file : weights) fetch(file);
  // Last, so that without a network the revision still means the last whole download.
  cache.remember_commit(id.revision, listing.commit);
  return cache.snapshot(listing.commit);
}

}  // namespace dynslice
