// Rows of question-answering data sets: JSON lines in local files, else from the hub's dataset server.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "dynslice/support/json.h"
#include "dynslice/support/progress.h"

namespace dynslice {

// Where the rows of one split may lie.
struct RowSource {
  std::string name;                // "arc_easy test", for messages
  std::vector<std::string> files;  // below a data folder, in the order in which they are looked for
  std::string dataset;             // on the hub: "allenai/ai2_arc"
  std::string config;              // "ARC-Easy"
  std::string split;               // "test"
};

struct DataRow {
  Json value;         // an object
  std::string where;  // "PATH: line 3"
};

struct DataRows {
  std::filesystem::path path;  // the file that was read
  std::string sha256;          // of that file (and its labels)
  std::vector<DataRow> rows;
};

// Looks for the files in `data_dir`, DYNSLICE_DATA_DIR and the cache (datasets/), in this order; what is nowhere is
// fetched from the dataset server ($DYNSLICE_DATASETS_SERVER, else the one of $HF_ENDPOINT) and kept in the cache under
// the last of the names. A file NAME-labels.lst beside NAME.jsonl gives, line by line, the "label" of its rows.
// Throws kMissingData (which files were looked for where, and how to mend it) when it cannot be had; kBadInput, with
// the line, for a line that is no JSON object, and for labels that are missing or no integers.
[[nodiscard]] DataRows load_rows(const RowSource& source, const std::filesystem::path& data_dir,
                                 ProgressSink& progress);

}  // namespace dynslice
