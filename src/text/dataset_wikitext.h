// WikiText-2 (raw): where its files lie, and how its lines become the text that perplexity is measured on.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dynslice/support/progress.h"

namespace dynslice {

// The splits a user can ask for: "test", "validation", "train".
bool is_wikitext_split(std::string_view split);

// The file of a split in `data_dir`, DYNSLICE_DATA_DIR or the cache of dynslice, in this order, as
// wikitext-2-raw/wiki.SPLIT.raw or (not in the cache) wiki.SPLIT.raw.
std::optional<std::filesystem::path> find_wikitext(const std::string& split, const std::filesystem::path& data_dir);

// Downloads the archive from the hub and unpacks it into the cache of dynslice. Throws kMissingData with the
// places that were looked at and the file to put there when it cannot be had.
std::filesystem::path download_wikitext(const std::string& split, const std::filesystem::path& data_dir,
                                        ProgressSink& progress);

// One row a line, with its newline; a blank line is "".
std::vector<std::string_view> wikitext_rows(std::string_view raw);

// The rows joined with "\n\n".
std::string join_wikitext(std::string_view raw);

}  // namespace dynslice
