// What the command line says: the request of a job, or a recipe.
#pragma once

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "dynslice/jobs/requests.h"

namespace dynslice::cli {

struct RunOptions {
  CommonOptions common;
  std::string recipe;                                       // file
  std::string output;                                       // folder
  bool keep_steps = false;                                  // leave the checkpoints between the steps
  bool check = false;                                       // read the recipe and do nothing else
  std::vector<std::pair<std::string, std::string>> handed;  // options for every step that has them, as they were given
};

using Command = std::variant<ScoreRequest, PlanRequest, SliceRequest, EvalRequest, CompareRequest, BenchRequest,
                             GenerateRequest, InspectRequest, ModelsRequest, ExportRequest, DropRequest, MergeRequest,
                             StreamlineRequest, HealRequest, QuantizeRequest, RunOptions>;

}  // namespace dynslice::cli
