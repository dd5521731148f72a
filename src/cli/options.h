// What the command line says, as plain data. Filled by parse.cpp, read by the verbs; knows nothing of LibTorch,
// so that --help answers without loading it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace dynslice::cli {

struct RangeOption {
  int64_t begin = 0;
  std::optional<int64_t> end;  // the stream's end when not given
};

struct CommonOptions {
  std::string model;  // folder, .gguf file or hub id; empty for the default model
  std::string device = "auto";
  std::string dtype = "auto";
  int threads = 0;                // 0: LibTorch's choice
  std::string activation_memory;  // size that residual streams may take in memory; empty: what fits
  std::string max_memory;         // size; empty: what the machine has left
  std::string scratch_dir;        // folder of the streams' file; empty: $TMPDIR, else /var/tmp
  bool dry_run = false;           // print what would be needed and do nothing
  std::string data_dir;           // where text data sets are looked for first
  bool json = false;              // one JSON object on stdout
  bool quiet = false;
  bool verbose = false;
  bool resume = false;                    // go on from what a run that was stopped left
  bool force = false;                     // start over instead; slice: also replace the output folder
  std::vector<std::string> command_line;  // for provenance
  std::string verb;
  std::vector<std::pair<std::string, std::string>> given;  // the options that decide the result, as they were given
};

struct TextOptions {
  std::string spec = "wikitext2";
  std::optional<RangeOption> range;  // of the token stream
  int64_t samples = 0;               // windows; 0: all
  int64_t seqlen = 0;                // tokens a window; 0: 2048 or the model's maximum
  std::optional<uint64_t> shuffle;   // seed
};

struct ScoreOptions {
  CommonOptions common;
  TextOptions calibration;
  std::string metric = "lr";
  std::string preset;  // "" or "paper"
  std::string output;  // scores.json
  std::string matrix;  // heat map of cka, an SVG file
};

// How much smaller the model is to become.
struct SizeTarget {
  std::string quantity;  // "params", "bytes", "flops"
  double share = 0;      // that is to go, in [0, 1)
};

// What `plan` and `slice` share.
struct PlanningOptions {
  CommonOptions common;
  TextOptions calibration;
  std::string method = "slice";
  std::optional<double> average;     // ratio in [0, 1)
  std::optional<SizeTarget> target;  // in the place of `average`, which is then solved for
  std::string allocator = "lr";
  std::optional<double> base;  // slicing base of lr
  bool base_auto = false;
  int64_t sweep_samples = 8;  // calibration windows of every trial of --base auto
  std::optional<double> max_ratio;
  std::optional<int64_t> round_to;
  bool slice_head = false;
  std::string preset;     // "" or "paper"
  std::string scores;     // file
  std::string out_dtype;  // "", "fp32", "bf16", "fp16"
};

struct PlanOptions : PlanningOptions {
  std::string output;  // plan.json
};

struct SliceOptions : PlanningOptions {
  std::string plan;    // file; replaces planning
  std::string output;  // folder
};

struct EvalOptions {
  CommonOptions common;
  TextOptions text;
  std::string protocol = "full";
};

struct BenchOptions {
  CommonOptions common;
  std::string against;          // a second model, measured in turns with the first; "" for none
  int64_t prompt_tokens = 512;  // of every sequence
  int64_t decode_tokens = 64;   // after the prompt
  int64_t repeats = 5;          // that count, after one that does not
  int64_t batch = 1;            // sequences side by side
  bool gemm = false;            // measure the machine's matrix products instead of a model
};

struct InspectOptions {
  CommonOptions common;
};

struct ExportOptions {
  CommonOptions common;
  bool gguf = false;   // the format; the only one so far
  std::string type;    // "", "f32", "f16", "bf16", "q8_0"
  std::string output;  // file
};

// What the verbs below `depth` share.
struct DepthOptions {
  CommonOptions common;
  TextOptions calibration;        // samples and seqlen 0: the method's own
  std::optional<int64_t> layers;  // that go
  std::optional<double> ratio;    // of the layers that goes, in the place of their number
  std::string out_dtype;          // "", "fp32", "bf16", "fp16"
  std::string output;             // folder
};

struct DropOptions : DepthOptions {
  std::string order = "bi";                          // or "ppl"
  std::vector<std::pair<int64_t, int64_t>> indices;  // ranges of layers, both ends included; in the place of an order
};

struct MergeOptions : DepthOptions {
  std::optional<double> threshold;       // of the cosine
  std::optional<int64_t> target_layers;  // that are left
  std::string rule = "sum";
};

struct StreamlineOptions : DepthOptions {
  std::string replace = "linear";  // "none", "linear", "linear-stream"
  std::string window = "search";   // "search", "cosine" or the first layer that goes
  double ridge = 1e-3;
};

using Command = std::variant<ScoreOptions, PlanOptions, SliceOptions, EvalOptions, BenchOptions, InspectOptions,
                             ExportOptions, DropOptions, MergeOptions, StreamlineOptions>;

}  // namespace dynslice::cli
