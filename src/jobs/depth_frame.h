// The frame that drop, merge and streamline share: what a method is, how its search is run, and how the result is
// written. drop and merge are in depth.cpp, streamline in depth_streamline.cpp.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "dynslice/depth/depth_plan.h"
#include "dynslice/depth/estimate.h"
#include "dynslice/jobs/depth.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/walk/journal.h"

namespace dynslice {

// What a search has in its hands.
struct DepthInputs {
  const Checkpoint& checkpoint;
  const ComputeOptions& compute;
  const LoadedText* text;  // null when the method needs none
  Journal& journal;
  ProgressSink& progress;

  int64_t layers() const { return checkpoint.config().num_layers(); }
  const TokenWindows& windows() const { return text->windows; }
  JournalPhase phase(const std::string& name) const { return {journal, name}; }
};

// The plan that a search came to, and how.
struct DepthSearchResult {
  DepthPlan plan;
  std::variant<DropSearch, MergeSearch, StreamlineSearch> search;
  OrderedJson json = OrderedJson::object();  // what the method adds to the record
};

// What a method needs and how it searches.
struct DepthMethod {
  std::string name;                                    // "drop"
  std::string suffix;                                  // of the folder's name: "drop-22"
  int64_t layers_left = 0;                             // about, for the estimate
  int64_t samples = 0, seqlen = 0;                     // of the calibration text by default; samples 0: needs none
  bool at_most = false;                                // whether fewer windows than `samples` will do
  std::function<DepthUse(const TokenWindows&)> use{};  // of the search
  std::function<ResourceEstimate(const ComputeOptions&, const TokenWindows&)> training{};  // after it, if there is one
  std::function<DepthSearchResult(const DepthInputs&)> search{};
};

int64_t share_of_layers(double ratio, int64_t layers);
// The number of layers that go, checked.
int64_t layers_to_go(const DepthRequest& request, int64_t layers);

// Prepares, searches and writes: `method_for` sees the opened model.
Outcome<DepthResult> run_method(DepthRequest request, ProgressSink& progress,
                                const std::function<DepthMethod(const Checkpoint& checkpoint)>& method_for);

}  // namespace dynslice
