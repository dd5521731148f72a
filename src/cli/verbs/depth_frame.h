// The frame that the verbs below `depth` share: what a method is, how its search is run, and how what it found is
// written and told. drop and merge are in depth.cpp, streamline in depth_streamline.cpp.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cli/show/terminal.h"
#include "dynslice/depth/depth_plan.h"
#include "dynslice/depth/estimate.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/walk/journal.h"

namespace dynslice::cli {

using Rows = std::vector<std::vector<std::string>>;

// What a search has in its hands.
struct Search {
  const Checkpoint& checkpoint;
  const ComputeOptions& compute;
  const LoadedText* text;  // null when the verb needs none
  Journal& journal;
  ProgressSink& progress;

  int64_t layers() const { return checkpoint.config().num_layers(); }
  const TokenWindows& windows() const { return text->windows; }
  JournalPhase phase(const std::string& name) const { return {journal, name}; }
};

// What it found, for people and for programs.
struct Found {
  DepthPlan plan;
  OrderedJson json = OrderedJson::object();  // what the method adds
  std::vector<std::string> header;
  Rows rows;
  std::string summary;                         // a line or more
  std::vector<std::string> training_header{};  // of a second table
  Rows training_rows{};
};

// One verb: what it needs and how it searches.
struct Method {
  std::string name;                                    // "drop"
  std::string suffix;                                  // of the folder's name: "drop-22"
  int64_t layers_left = 0;                             // about, for the estimate
  int64_t samples = 0, seqlen = 0;                     // of the calibration text by default; samples 0: needs none
  bool at_most = false;                                // whether fewer windows than `samples` will do
  std::function<DepthUse(const TokenWindows&)> use{};  // of the search
  std::function<ResourceEstimate(const ComputeOptions&, const TokenWindows&)> training{};  // after it, if there is one
  std::function<Found(const Search&)> search{};
};

std::string join(const std::vector<int64_t>& numbers);
double perplexity_of(double loss);
int64_t share_of_layers(double ratio, int64_t layers);
// The number of layers that go, checked.
int64_t layers_to_go(const DepthRequest& options, int64_t layers);

// The frame of every verb: `method_for` sees the opened model.
void run_method(DepthRequest options, TerminalProgress& progress,
                const std::function<Method(const Checkpoint& checkpoint)>& method_for);

}  // namespace dynslice::cli
