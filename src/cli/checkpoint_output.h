// The folder that a checkpoint is written to: its name, what may not be overwritten, and the record of where it came
// from. What `slice` and `depth` share.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "cli/inputs.h"
#include "cli/options.h"

namespace dynslice::cli {

// What the model is called, from its path or hub id.
std::string model_name(const CommonOptions& common, const Checkpoint& checkpoint);

// `wanted`, or ./NAME-SUFFIX. Fails, before hours of work, when the folder exists and may not be replaced, or holds the
// model that is read.
std::filesystem::path checkpoint_folder(const std::string& wanted, const CommonOptions& common,
                                        const Checkpoint& checkpoint, const std::string& suffix);

// Throws kUsage when `out` exists and not `may_exist`.
void check_output(const std::filesystem::path& out, bool may_exist);

// dynslice.json up to what the method adds: run, hashes of the source, and the source's own record if it has one.
OrderedJson describe_checkpoint(const std::string& method, const OrderedJson& run_description,
                                const Checkpoint& checkpoint, ProgressSink& progress);

// What an earlier run of this very command wrote before it could say so: its dynslice.json.
std::optional<OrderedJson> finished_earlier(const std::filesystem::path& out, const OrderedJson& run_description);

}  // namespace dynslice::cli
