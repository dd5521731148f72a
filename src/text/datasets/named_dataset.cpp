#include "text/datasets/named_dataset.h"

#include <system_error>

#include "dynslice/support/environment.h"
#include "dynslice/support/error.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

std::string places(const fs::path& data_dir) {
  const std::string named = environment("DYNSLICE_DATA_DIR");
  return (data_dir.empty() ? "--data-dir (not given)" : "--data-dir " + data_dir.string()) + ", DYNSLICE_DATA_DIR " +
         (named.empty() ? "(not set)" : named) + ", the cache " + dataset_cache().string();
}

}  // namespace

const NamedSplit* NamedDataset::find_split(const std::string& wanted) const {
  for (const NamedSplit& split : splits) {
    if (split.name == wanted) return &split;
  }
  return nullptr;
}

const std::vector<NamedDataset>& named_datasets() {
  static const std::vector<NamedDataset> kDatasets = {wikitext2_dataset(), ptb_dataset(), c4_dataset()};
  return kDatasets;
}

std::string describe_named_datasets() {
  std::string text;
  for (const NamedDataset& dataset : named_datasets()) {
    std::string splits;
    for (const NamedSplit& split : dataset.splits) splits += (splits.empty() ? "" : ", ") + split.name;
    text += (text.empty() ? "the known data sets are " : ", ") + dataset.name + (text.empty() ? " (splits " : " (") +
            splits + ")";
  }
  return text;
}

fs::path dataset_cache() { return cache_folder() / "datasets"; }

std::optional<fs::path> find_split_file(const NamedSplit& split, const fs::path& data_dir) {
  std::error_code error;
  if (!data_dir.empty() && !fs::is_directory(data_dir, error)) {
    throw_error(ErrorKind::kMissingData, "--data-dir ", data_dir.string(),
                ": is not a folder; name the folder that holds ", split.files.front().string());
  }
  for (const fs::path& folder : {data_dir, fs::path(environment("DYNSLICE_DATA_DIR")), dataset_cache()}) {
    if (folder.empty()) continue;
    for (const fs::path& file : split.files) {
      if (fs::is_regular_file(folder / file, error)) return folder / file;
    }
  }
  return std::nullopt;
}

fs::path require_split_file(const NamedDataset& dataset, const NamedSplit& split, const fs::path& data_dir,
                            ProgressSink& progress) {
  if (auto path = find_split_file(split, data_dir)) return *path;
  try {
    return dataset.download(split, progress);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kMissingData) throw;
    const std::string file = split.files.front().string();
    throw_error(ErrorKind::kMissingData, dataset.name, ": ", file, " is in none of ", places(data_dir),
                "; put it at FOLDER/", file, " and give --data-dir FOLDER (downloading failed: ", error.what(), ")");
  }
}

}  // namespace dynslice
