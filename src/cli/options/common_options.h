// Options that several verbs have, and the definitions of verbs that stand in files of their own.
#pragma once

#include <string>

#include "cli/options/options.h"

namespace CLI {
class App;
}

namespace dynslice::cli {

// A type name (see reference.h).
inline constexpr const char* kRatioType = "RATIO";

// Model, --json and so on; with `computes` device, dtype and threads.
void add_common(CLI::App& verb, CommonOptions& options, bool computes);
void add_dry_run(CLI::App& verb, CommonOptions& options);
// How much memory may be taken, and --dry-run.
void add_memory(CLI::App& verb, CommonOptions& options);
// Of the commands that walk over the layers of a model of any size: those, --resume and --force.
void add_walk(CLI::App& verb, CommonOptions& options, const std::string& replaces = "");
// Of the text that `prefix` ("calib" or "ppl") names.
void add_text(CLI::App& verb, TextOptions& options, const std::string& prefix, const std::string& use,
              const std::string& split, const std::string& samples_default, const std::string& seqlen_default);
void add_calibration(CLI::App& verb, TextOptions& options);
void add_out_dtype(CLI::App& verb, std::string& out_dtype);

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
