// What a job is asked for, as plain data: the command line fills it, and so may whoever links the library. Knows
// nothing of LibTorch, so that --help answers without loading it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dynslice/depth/choices.h"
#include "dynslice/evaluate/choices.h"
#include "dynslice/plan/choices.h"
#include "dynslice/quantize/choices.h"
#include "dynslice/train/choices.h"

namespace dynslice {

struct RangeOption {
  int64_t begin = 0;
  std::optional<int64_t> end;  // the stream's end when not given
};

// What a command that is a step of a recipe belongs to.
struct RecipePlace {
  std::string file;
  std::string description;
  size_t step = 0;  // from 1 on
  size_t steps = 0;
  std::vector<std::string> command_line;  // of the whole recipe
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
  bool rehearsal = false;         // with dry_run: find out whether it could begin, and print nothing
  std::string data_dir;           // where text data sets are looked for first
  bool json = false;              // one JSON object on stdout
  bool quiet = false;
  bool verbose = false;
  std::string log_file;                   // to which every message is appended; empty: none
  bool resume = false;                    // go on from what a run that was stopped left
  bool force = false;                     // start over instead; slice: also replace the output folder
  std::vector<std::string> command_line;  // for provenance
  std::string verb;
  std::vector<std::pair<std::string, std::string>> given;  // the options that decide the result, as they were given
  std::optional<RecipePlace> recipe;                       // when a recipe runs it

  [[nodiscard]] bool is_given(const std::string& option) const {
    for (const auto& [name, value] : given) {
      if (name == option) return true;
    }
    return false;
  }
};

struct TextOptions {
  std::string spec = "wikitext2";
  std::optional<RangeOption> range;  // of the token stream
  int64_t samples = 0;               // windows; 0: all
  int64_t seqlen = 0;                // tokens a window; 0: 2048 or the model's maximum
  std::optional<uint64_t> shuffle;   // seed
  bool at_most = false;              // fewer windows than `samples` will do
};

struct ScoreRequest {
  CommonOptions common;
  TextOptions calibration;
  std::string metric = "lr";
  std::string preset;  // "" or "paper"
  std::string output;  // scores.json
  std::string matrix;  // heat map of cka, an SVG file
};

// How much smaller the model is to become.
struct SizeTarget {
  SizeQuantity quantity = SizeQuantity::kParams;
  double share = 0;  // that is to go, in [0, 1)
};

// Of --method modular; those that are not given have the method's default.
struct ModularChoices {
  std::optional<AttentionChoice> attention;
  std::optional<Refit> refit;  // of slice too; kSelf is of modular alone, kNone of slice
  std::optional<NeuronChoice> neurons;
  std::optional<TokenWeights> weigh_tokens;
  std::optional<double> error_share;
  std::optional<double> ridge;
  std::optional<int64_t> gradient_samples;  // calibration windows
  [[nodiscard]] bool any_but_refit() const { return attention || neurons || weigh_tokens; }
  [[nodiscard]] bool of_any_refit() const { return refit || error_share || ridge; }  // of slice too
};

// What `plan` and `slice` share.
struct PlanningRequest {
  CommonOptions common;
  TextOptions calibration;
  WidthMethod method = WidthMethod::kSlice;
  BasisScope basis = BasisScope::kBlock;                  // of slice
  DirectionChoice directions = DirectionChoice::kEnergy;  // of BasisScope::kGlobal
  std::optional<double> average;                          // ratio in [0, 1)
  std::optional<SizeTarget> target;                       // in the place of `average`, which is then solved for
  std::optional<Allocator> given_allocator;
  std::optional<double> base;  // slicing base of lr
  double epsilon = 0.1;        // of softmax
  bool base_auto = false;
  int64_t sweep_samples = 8;  // calibration windows of every trial of --base auto and --allocate search
  int64_t trials = 15;        // of --allocate search
  std::optional<double> max_ratio;
  std::optional<int64_t> round_to;
  bool slice_head = false;
  std::optional<PlanPreset> preset;
  std::string scores;     // file
  std::string out_dtype;  // "", "fp32", "bf16", "fp16"
  ModularChoices modular;
  bool is_modular() const { return method == WidthMethod::kModular; }
  bool is_global() const { return !is_modular() && basis == BasisScope::kGlobal; }
  bool is_paper() const { return preset == PlanPreset::kPaper; }
  // The one that was given, or the method's default.
  Allocator allocator() const {
    const Allocator usual = is_global() ? Allocator::kConstant : is_modular() ? Allocator::kBlend : Allocator::kLr;
    return given_allocator.value_or(usual);
  }
  const AllocatorRow& allocation() const { return row_of(allocator()); }
};

struct PlanRequest : PlanningRequest {
  std::string output;  // plan.json
};

struct SliceRequest : PlanningRequest {
  std::string plan;    // file; replaces planning
  std::string output;  // folder
};

struct EvalRequest {
  CommonOptions common;
  TextOptions text;
  PerplexityProtocol protocol = PerplexityProtocol::kFull;
  std::string against;              // the model to compare with, usually the dense one; "" for none
  std::string tasks;                // names with commas between them; "" for perplexity alone
  int64_t limit = 0;                // questions of every task; 0: all
  std::optional<int64_t> examples;  // few-shot ones; else the tasks' own
  std::string log_samples;          // file of one line a question
};

struct CompareRequest {
  CommonOptions common;             // with the model to compare with, usually the dense one
  std::vector<std::string> others;  // that are compared with it
  TextOptions text;
  PerplexityProtocol protocol = PerplexityProtocol::kFull;
  bool kl = false;                  // divergence from the first model too
  std::string tasks;                // names with commas between them; "" for none
  int64_t limit = 0;                // questions of every task; 0: all
  std::optional<int64_t> examples;  // few-shot ones; else the tasks' own
  bool no_speed = false;
  int64_t prompt_tokens = 512;  // of speed, as bench has them
  int64_t decode_tokens = 64;
  int64_t repeats = 5;
  int64_t batch = 1;
  int64_t resamples = 10'000;  // of the bootstrap
  uint64_t seed = 0;
  std::string csv, markdown;  // files
  bool no_cache = false;
};

struct BenchRequest {
  CommonOptions common;
  std::vector<std::string> others;  // more models, measured in turns with the first
  std::string against;              // a second model, measured in turns with the first; "" for none
  int64_t prompt_tokens = 512;      // of every sequence
  int64_t decode_tokens = 64;       // after the prompt
  int64_t repeats = 5;              // that count, after one that does not
  int64_t batch = 1;                // sequences side by side
  bool gemm = false;                // measure the machine's matrix products instead of a model
};

struct GenerateRequest {
  CommonOptions common;
  std::optional<std::string> prompt;
  std::string prompt_file;  // "-" for standard input; without a prompt that is read as well
  bool chat = false;        // the prompt is a message, put into the model's chat template
  std::optional<std::string> system;
  int64_t max_tokens = 256;
  double temperature = 0;
  int64_t top_k = 0;
  double top_p = 1;
  uint64_t seed = 0;
  std::vector<std::string> stops;
  bool ignore_end = false;  // go on behind tokens that end a text
};

struct InspectRequest {
  CommonOptions common;
};

struct ModelsRequest {
  CommonOptions common;
  bool markdown = false;  // as docs/models.md has it
};

struct ExportRequest {
  CommonOptions common;
  bool gguf = false;   // the format; the only one so far
  std::string type;    // "", or the name of a ggml type: "bf16", "q4_k"
  std::string output;  // file
};

// What the verbs below `depth` share.
struct DepthRequest {
  CommonOptions common;
  TextOptions calibration;        // samples and seqlen 0: the method's own
  std::optional<int64_t> layers;  // that go
  std::optional<double> ratio;    // of the layers that goes, in the place of their number
  std::string out_dtype;          // "", "fp32", "bf16", "fp16"
  std::string output;             // folder
};

// What the verbs that train share; the defaults are the verb's own.
struct TrainingRequest {
  double epochs = 1;               // passes over the text
  std::optional<int64_t> updates;  // in their place
  int64_t batch = 8;               // sequences an update
  int64_t micro_batch = 0;         // sequences at a time; 0: as many as make 2048 tokens
  double learning_rate = 1e-4;
  std::optional<double> final_learning_rate;
  double usual_final_learning_rate = 0;  // without it; never above learning_rate
  double warmup = 0.01;
  double weight_decay = 0;
  double clip = 1;
  int64_t validations = 10;
  int64_t patience = 0;
  int64_t held_out = 0;  // sequences; 0: a sixteenth, 1 to 16
  uint64_t seed = 0;
  KeptActivations keep_activations = KeptActivations::kAuto;
};

struct DropRequest : DepthRequest {
  DropOrder order = DropOrder::kInfluence;
  std::vector<std::pair<int64_t, int64_t>> indices;  // ranges of layers, both ends included; in the place of an order
};

struct MergeRequest : DepthRequest {
  std::optional<double> threshold;       // of the cosine
  std::optional<int64_t> target_layers;  // that are left
  MergeRule rule = MergeRule::kSum;
};

struct StreamlineRequest : DepthRequest {
  ReplacementKind replace = ReplacementKind::kLinear;
  WindowChoice window = WindowChoice::kLoss;
  std::optional<int64_t> start;  // the first layer that goes, in the place of a search
  double ridge = 1e-3;
  ReplacementLoss loss = ReplacementLoss::kLanguageModel;
  StreamFormat stream_dtype = StreamFormat::kFp32;  // of what it is trained on
  TrainingRequest training;
};

struct QuantizeRequest {
  CommonOptions common;
  TextOptions calibration;
  std::vector<int> bits;           // the levels, falling
  std::vector<double> low_shares;  // of the layers, at every level but the first; empty: alike
  std::optional<double> average_bits;
  std::string order = "lim";   // a metric, "search", "random", "reverse", or a score file
  uint64_t seed = 0;           // of random
  int64_t search_samples = 8;  // windows that measure the losses of search
  int64_t search_rounds = 4;   // times that they are all measured anew
  std::string plan;            // file; in the place of all that
  QuantizeMethod method = QuantizeMethod::kGptq;
  GroupSize group_size = GroupSize::kAuto;
  bool symmetric = false;
  double damping = 0.01;
  bool natural_order = false;      // of columns
  std::string sweep;               // file; measure instead of writing a checkpoint
  TextOptions measured;            // of the sweep
  std::string tasks;               // of the sweep: names, with commas between them
  int64_t task_limit = 0;          // questions of every task; 0: all
  bool gguf = false;               // write a GGUF file
  std::vector<std::string> types;  // ggml's, of the levels of `bits`; empty: the K format of as many bits
  std::string embeddings;          // ggml's type of embedding and head; "" as they are
  bool fake_quant = false;         // write the values in the dtype of the output
  std::string out_dtype;           // "", "fp32", "bf16", "fp16": of what stays, and of scales
  std::string output;              // folder
};

struct HealRequest {
  CommonOptions common;
  TextOptions text;
  std::string instructions;  // file, in the place of the text
  bool lora = false;         // the way, unless --distill is given
  std::string distill;       // the original model; "" for healing on the next token
  int64_t rank = 8;
  double alpha = 16;
  double dropout = 0;
  std::string target_modules = "all";  // or names, with commas between them
  TrainingRequest training;
  bool adapter = false;   // write PEFT's adapter instead of merged weights
  std::string out_dtype;  // "", "fp32", "bf16", "fp16"
  std::string output;     // folder
};

}  // namespace dynslice
