// Data sets that are known by name: which splits they have, where the files of those lie, and what text they hold.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/support/progress.h"

namespace dynslice {

struct NamedSplit {
  std::string name;  // "test", "validation", "train"
  // Where its file may lie below a data folder; messages name the first.
  std::vector<std::filesystem::path> files;
};

struct NamedDataset {
  std::string name;  // "wikitext2"
  std::vector<NamedSplit> splits;
  std::string evaluated_split;  // what the name alone means for evaluation
  // Windows that evaluation takes unless it is told how many; 0: all.
  int64_t evaluated_windows = 0;
  // Brings the split's file from the hub. Throws kMissingData when it cannot be had.
  std::function<std::filesystem::path(const NamedSplit&, ProgressSink&)> download;
  // The text of the split that such a file holds. Throws kBadInput for a file that is broken.
  std::function<std::string(const std::filesystem::path&, const NamedSplit&)> read;

  const NamedSplit* find_split(const std::string& name) const;  // nullptr when there is none
};

// WikiText-2 (raw): rows are lines with their newline, joined by "\n\n".
NamedDataset wikitext2_dataset();
// Penn Treebank as Mikolov prepared it: rows are lines without the spaces around them, joined by " ".
NamedDataset ptb_dataset();
// The English part of C4: the first documents of one file, joined by " ".
NamedDataset c4_dataset();

// Those above.
const std::vector<NamedDataset>& named_datasets();

// "the known data sets are wikitext2 (splits test, validation, train), ...", for messages.
std::string describe_named_datasets();

// Where data sets that were unpacked are kept.
std::filesystem::path dataset_cache();

// The split's file in `data_dir`, DYNSLICE_DATA_DIR or the cache of dynslice, in this order. Throws kMissingData when
// `data_dir` is not empty and no folder.
std::optional<std::filesystem::path> find_split_file(const NamedSplit& split, const std::filesystem::path& data_dir);

// That file, else the one from the hub. Throws kMissingData, with the places that were looked at and the file to put
// there, when it cannot be had.
std::filesystem::path require_split_file(const NamedDataset& dataset, const NamedSplit& split,
                                         const std::filesystem::path& data_dir, ProgressSink& progress);

}  // namespace dynslice
