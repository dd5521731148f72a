#include "text/datasets/dataset_wikitext.h"

#include "dynslice/hub/hub.h"
#include "dynslice/hub/hub_cache.h"
#include "dynslice/support/files.h"
#include "text/datasets/named_dataset.h"
#include "text/datasets/zip_extract.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWikitextFolder = "wikitext-2-raw";
constexpr const char* kWikitextRepo = "ggml-org/ci";
constexpr const char* kWikitextArchive = "wikitext-2-raw-v1.zip";
// The training split has 11 MB.
constexpr uint64_t kMaxSplitBytes = uint64_t{64} << 20;

NamedSplit wikitext_split(const std::string& name, const std::string& file) {
  return {name, {fs::path(kWikitextFolder) / file, file}};
}

// Unpacks all splits of the archive into the cache.
fs::path download_wikitext(const NamedDataset& dataset, const NamedSplit& wanted, ProgressSink& progress) {
  const fs::path archive = hub_file(HubOptions::from_environment(), HubRepoKind::kDataset, HubId{kWikitextRepo, "main"},
                                    kWikitextArchive, progress);
  make_folder(dataset_cache() / kWikitextFolder);
  for (const NamedSplit& split : dataset.splits) {
    const std::string content = read_zip_member(archive, split.files.front().string(), kMaxSplitBytes);
    write_file_atomically(dataset_cache() / split.files.front(), content);
  }
  return dataset_cache() / wanted.files.front();
}

}  // namespace

NamedDataset wikitext2_dataset() {
  NamedDataset dataset;
  dataset.name = "wikitext2";
  dataset.splits = {wikitext_split("test", "wiki.test.raw"), wikitext_split("validation", "wiki.valid.raw"),
                    wikitext_split("train", "wiki.train.raw")};
  dataset.evaluated_split = "test";
  dataset.download = [](const NamedSplit& split, ProgressSink& progress) {
    return download_wikitext(wikitext2_dataset(), split, progress);
  };
  dataset.read = [](const fs::path& path, const NamedSplit&) { return join_wikitext(read_file(path)); };
  return dataset;
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
