// Options that several verbs have, and the definitions of verbs that stand in files of their own. A verb defines its
// own options first and those of all verbs last: within a group, options are shown in the order of their definitions.
#pragma once

#include <string>

#include "cli/options/groups.h"
#include "cli/options/options.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace dynslice::cli {

// A type name (see reference.h).
inline constexpr const char* kRatioType = "RATIO";

void add_model(CLI::App& verb, CommonOptions& options);
// -o; `type` is FILE or FOLDER.
CLI::Option* add_output(CLI::App& verb, std::string& output, const std::string& type, const std::string& help,
                        const std::string& default_text = "");
// --json and so on; with `computes` device, dtype and threads.
void add_common(CLI::App& verb, CommonOptions& options, bool computes);
void add_dry_run(CLI::App& verb, CommonOptions& options);
// How much memory may be taken, and --dry-run.
void add_memory(CLI::App& verb, CommonOptions& options);
// Of the commands that walk over the layers of a model of any size: those, --resume and --force.
void add_walk(CLI::App& verb, CommonOptions& options, const std::string& replaces = "");
// add_common and add_walk of the commands that write a checkpoint folder.
void add_checkpoint_walk(CLI::App& verb, CommonOptions& options);
// Of the text that `prefix` ("calib" or "ppl") names.
void add_text(CLI::App& verb, TextOptions& options, const std::string& prefix, const std::string& use,
              const std::string& split, const std::string& samples_default, const std::string& seqlen_default);
void add_calibration(CLI::App& verb, TextOptions& options);
void add_out_dtype(CLI::App& verb, std::string& out_dtype);

// In parse_planning.cpp: what plan and slice share.
void add_planning(CLI::App& verb, PlanningRequest& options);
// In parse_depth.cpp, parse_evaluate.cpp, parse_generate.cpp, parse_heal.cpp and parse_quantize.cpp.
void define_depth(CLI::App& app, DropRequest& drop, MergeRequest& merge, StreamlineRequest& streamline);
void add_training(CLI::App& verb, TrainingRequest& options);
void define_eval(CLI::App& app, EvalRequest& options);
void define_compare(CLI::App& app, CompareRequest& options);
void define_bench(CLI::App& app, BenchRequest& options);
void define_generate(CLI::App& app, GenerateRequest& options);
void define_heal(CLI::App& app, HealRequest& options);
void define_quantize(CLI::App& app, QuantizeRequest& options);

}  // namespace dynslice::cli
