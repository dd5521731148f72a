#include "text/dataset_wikitext.h"

#include <array>
#include <cstdlib>
#include <system_error>

#include "dynslice/support/environment.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/text/hub.h"
#include "text/hub_cache.h"
#include "text/zip_extract.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFolder = "wikitext-2-raw";
constexpr const char* kHubRepo = "ggml-org/ci";
constexpr const char* kHubArchive = "wikitext-2-raw-v1.zip";
// The training split has 11 MB.
constexpr uint64_t kMaxSplitBytes = uint64_t{64} << 20;

struct Split {
  const char* name;
  const char* file;
};
constexpr std::array<Split, 3> kSplits{
    {{"test", "wiki.test.raw"}, {"validation", "wiki.valid.raw"}, {"train", "wiki.train.raw"}}};

std::string file_of(const std::string& split) {
  for (const Split& known : kSplits) {
    if (split == known.name) return known.file;
  }
  throw_error(ErrorKind::kUsage, "wikitext2 has no split \"", split, "\"; it has test, validation and train");
}

fs::path dataset_cache() { return cache_folder() / "datasets"; }

std::optional<fs::path> find_in(const fs::path& folder, const std::string& file) {
  for (const fs::path& path : {folder / kFolder / file, folder / file}) {
    std::error_code error;
    if (fs::is_regular_file(path, error)) return path;
  }
  return std::nullopt;
}

std::string places(const fs::path& data_dir) {
  const std::string named = environment("DYNSLICE_DATA_DIR");
  return (data_dir.empty() ? "--data-dir (not given)" : "--data-dir " + data_dir.string()) + ", DYNSLICE_DATA_DIR " +
         (named.empty() ? "(not set)" : named) + ", the cache " + dataset_cache().string();
}

}  // namespace

bool is_wikitext_split(std::string_view split) {
  for (const Split& known : kSplits) {
    if (split == known.name) return true;
  }
  return false;
}

std::optional<fs::path> find_wikitext(const std::string& split, const fs::path& data_dir) {
  const std::string file = file_of(split);
  std::error_code error;
  if (!data_dir.empty() && !fs::is_directory(data_dir, error)) {
    throw_error(ErrorKind::kMissingData, "--data-dir ", data_dir.string(),
                ": is not a folder; name the folder that holds ", kFolder, "/", file);
  }
  for (const fs::path& folder : {data_dir, fs::path(environment("DYNSLICE_DATA_DIR"))}) {
    if (folder.empty()) continue;
    if (auto path = find_in(folder, file)) return path;
  }
  fs::path cached = dataset_cache() / kFolder / file;
  if (fs::is_regular_file(cached, error)) return cached;
  return std::nullopt;
}

fs::path download_wikitext(const std::string& split, const fs::path& data_dir, ProgressSink& progress) {
  const std::string file = file_of(split);
  fs::path archive;
  try {
    archive =
        hub_file(HubOptions::from_environment(), HubRepoKind::kDataset, HubId{kHubRepo, "main"}, kHubArchive, progress);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kMissingData) throw;
    throw_error(ErrorKind::kMissingData, "wikitext2: ", file, " is in none of ", places(data_dir),
                "; put it at FOLDER/", kFolder, "/", file,
                " and give --data-dir FOLDER (downloading failed: ", error.what(), ")");
  }
  const fs::path folder = dataset_cache() / kFolder;
  make_folder(folder);
  for (const Split& known : kSplits) {
    const std::string content = read_zip_member(archive, std::string(kFolder) + "/" + known.file, kMaxSplitBytes);
    write_file_atomically(folder / known.file, content);
  }
  return folder / file;
}

std::vector<std::string_view> wikitext_rows(std::string_view raw) {
  std::vector<std::string_view> rows;
  while (!raw.empty()) {
    const size_t newline = raw.find('\n');
    const size_t length = newline == std::string_view::npos ? raw.size() : newline + 1;
    std::string_view row = raw.substr(0, length);
    raw.remove_prefix(length);
    if (row.find_first_not_of(" \t\r\n\v\f") == std::string_view::npos) row = {};
    rows.push_back(row);
  }
  return rows;
}

std::string join_wikitext(std::string_view raw) {
  const std::vector<std::string_view> rows = wikitext_rows(raw);
  std::string text;
  text.reserve(raw.size() + 2 * rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    if (i > 0) text += "\n\n";
    text += rows[i];
  }
  return text;
}

}  // namespace dynslice
