// The rows of a data set as the hub's dataset server hands them out: 100 at a time, as JSON
// (https://huggingface.co/docs/dataset-viewer/rows).
#pragma once

#include <string>

#include "dynslice/support/progress.h"

namespace dynslice {

struct DatasetSplit {
  std::string dataset;  // "allenai/ai2_arc"
  std::string config;   // "ARC-Easy"
  std::string split;    // "test"
};

// All rows of a split, in order, one JSON object a line. Throws kMissingData when the server cannot be reached,
// refuses, or has only a part of the split; kBadInput when it answers something else than rows.
std::string fetch_rows(const DatasetSplit& split, ProgressSink& progress);

}  // namespace dynslice
