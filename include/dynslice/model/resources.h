// What a verb will need, before it begins: memory, disk and time, from shapes alone. The one place that knows; both
// --dry-run, which prints it, and --max-memory, which plans by it, ask here.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/model/checkpoint.h"
#include "dynslice/model/layer_walk.h"

namespace dynslice {

// Arithmetic, by the kind of product that does it: their rates differ.
struct Work {
  double forward_flops = 0;   // in the dtype of the forward
  double rotation_flops = 0;  // fp32
  double moment_flops = 0;    // fp32, summed in fp64
  double eigen_cubes = 0;     // sum of n³ over all eigendecompositions of n × n matrices
  double bytes_read = 0;      // weights, as stored; of a conversion, those written too
  double bytes_streamed = 0;  // weights in memory, all of them for every token that is decoded
  double flops() const;       // all multiplications and additions
  Work& operator+=(const Work& other);
};

struct MemoryPart {
  std::string name;  // "layer_weights": a key of the --json output
  uint64_t bytes = 0;
};

struct ResourceEstimate {
  std::vector<MemoryPart> parts;  // in memory together at the worst moment, streams excepted
  uint64_t stream_bytes = 0;      // residual streams: in memory, or in the scratch file
  uint64_t output_bytes = 0;      // on the disk, for good
  Work work;
  uint64_t fixed_bytes() const;  // sum of the parts
};

// One estimate after the other: the larger memory, the sum of the work and of the output.
ResourceEstimate operator+(const ResourceEstimate& first, const ResourceEstimate& second);

// Of all tensors of a checkpoint, as they are stored.
uint64_t stored_bytes(const Checkpoint& checkpoint);

// Windows of text that go through the model together.
struct TextAmount {
  int64_t windows = 0;
  int64_t length = 0;
  int64_t tokens() const { return windows * length; }
};

// Scoring; `kept_streams` are alive at a time (n + 1 for the metric window:n), and `kept_values` fp32 values a token
// beside them (of cka).
ResourceEstimate estimate_score(const Checkpoint& checkpoint, const ComputeOptions& compute, TextAmount text,
                                int64_t kept_streams = 1, int64_t kept_values = 0);

// Scoring by the weights alone (zd).
ResourceEstimate estimate_weight_scores(const Checkpoint& checkpoint);

// Slicing. `sliced` is what is written, of `output_bytes`; null for a trial that only measures.
struct SliceUse {
  TextAmount calibration;
  TextAmount held_out;        // walked beside it
  TextAmount gradients = {};  // of estimate_sensitivity, when its result is kept meanwhile; the same below
  bool refits = false;        // with the dense stream beside that of the sliced model
  const ModelConfig* sliced = nullptr;
  uint64_t output_bytes = 0;
};
ResourceEstimate estimate_slice(const Checkpoint& checkpoint, const ComputeOptions& compute, const SliceUse& use);

// What the loss says of the layers: the text goes forth and back through all of them. Nothing without text.
ResourceEstimate estimate_sensitivity(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                      TextAmount gradients);

// Slicing in one basis: a walk that finds it and one that slices, with the dense stream beside that of the sliced model
// where matrices are refitted.
struct GlobalUse {
  TextAmount calibration;
  TextAmount gradients = {};
  bool refits = true;
  const ModelConfig* sliced = nullptr;
  uint64_t output_bytes = 0;
};
ResourceEstimate estimate_slice_globally(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                         const GlobalUse& use);

// Compressing layers. `compressed` is what is written, of `output_bytes`; null for a walk that only measures.
struct ModularUse {
  TextAmount calibration;
  TextAmount held_out;  // walked beside it
  TextAmount gradients = {};
  const ModelConfig* compressed = nullptr;
  uint64_t output_bytes = 0;
};
ResourceEstimate estimate_modular(const Checkpoint& checkpoint, const ComputeOptions& compute, const ModularUse& use);

// Perplexity, as many windows at a time as `stream_bytes` allow.
ResourceEstimate estimate_perplexity(const Checkpoint& checkpoint, const ComputeOptions& compute, TextAmount text,
                                     int64_t stream_bytes);

// Perplexity of two models and their divergence, as many windows at a time as `stream_bytes` allow for both streams.
ResourceEstimate estimate_divergence(const Checkpoint& checkpoint, const Checkpoint& reference,
                                     const ComputeOptions& compute, TextAmount text, int64_t stream_bytes);

// Trying shallower models beside the dense one.
struct DepthUse {
  int64_t streams = 1;        // alive at the worst moment
  double walks = 1;           // through all layers, that all layers computed make up
  int64_t losses = 0;         // models whose losses are measured
  int64_t matrices = 0;       // hidden × hidden in fp64, alive at the worst moment
  int64_t merged_layers = 0;  // in fp32, beside the one that is used
  uint64_t output_bytes = 0;
};
ResourceEstimate estimate_depth(const Checkpoint& checkpoint, const ComputeOptions& compute, TextAmount text,
                                const DepthUse& use);

// Quantizing the matrices of all layers, one at a time; `by_gptq` with the text passing through them.
ResourceEstimate estimate_quantize(const Checkpoint& checkpoint, const ComputeOptions& compute, TextAmount text,
                                   bool by_gptq, uint64_t output_bytes);

// Losses of many quantized models in one walk over the held-out text, the calibration text beside it.
struct PlanLossUse {
  int64_t plans = 1;   // streams alive at the worst moment
  int64_t rounds = 1;  // that all of it is done
  double walks = 1;    // through all layers, that all layers computed in a round make up
};
ResourceEstimate estimate_plan_losses(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                      TextAmount calibration, TextAmount held_out, const PlanLossUse& use);

// A model that is in memory as a whole: `runs` times prompts of a batch, and then its tokens one at a time.
struct ResidentUse {
  int64_t batch = 1;
  int64_t prompt_tokens = 0;
  int64_t decode_tokens = 0;
  int64_t runs = 1;
};
ResourceEstimate estimate_resident(const Checkpoint& checkpoint, const ComputeOptions& compute, const ResidentUse& use);
// Adds one more that is in memory at the same time, its weights and cache as parts that begin with `prefix`.
void add_resident(ResourceEstimate& estimate, const Checkpoint& other, const ComputeOptions& compute,
                  const ResidentUse& use, const std::string& prefix);

// Training some parameters of consecutive layers that are in memory, on streams or on the next token.
struct TrainingUse {
  int64_t first_layer = 0, end_layer = 0;  // of the checkpoint, in memory; the end excluded
  bool has_head = true;                    // embedding and output matrix are there too
  int64_t parameters = 0;                  // that are trained
  int64_t kept_parameters = 0;             // trained before, or to be, beside them
  int64_t matrices = 0;                    // hidden × hidden in fp64
  int64_t micro_tokens = 0;                // that go through the layers together
  int64_t trained_tokens = 0;              // all passes together
  int64_t validated_tokens = 0;
  bool recomputes = true;   // inner activations on the way back
  int64_t streams = 0;      // of the text, kept
  int64_t stream_item = 4;  // bytes of a value of theirs
  double walks = 0;         // through all layers, before the training
  uint64_t output_bytes = 0;
};
ResourceEstimate estimate_training(const Checkpoint& checkpoint, const ComputeOptions& compute, TextAmount text,
                                   const TrainingUse& use);

// What the backward of one layer needs of the forward of `tokens` tokens.
int64_t activation_bytes(const LayerShape& shape, int64_t head_dim, at::ScalarType dtype, int64_t tokens);

// Writing the weights in another format, a chunk of a tensor at a time.
ResourceEstimate estimate_conversion(const Checkpoint& checkpoint, uint64_t output_bytes);

// ---- Planning ----

struct MemoryLimits {
  std::optional<uint64_t> max_memory;         // else what the machine, or the CUDA device, has left
  std::optional<uint64_t> activation_memory;  // else as much as fits
  std::filesystem::path scratch_folder;       // empty: default_scratch_folder()
};

// `stream_bytes` is 0, or what the streams of one turn of windows may take, for verbs that walk their text in turns.
using Estimator = std::function<ResourceEstimate(const ComputeOptions& compute, int64_t stream_bytes)>;

struct ResourcePlan {
  ComputeOptions compute;     // with the chunk size, and the store of the streams when they have to be spilled
  int64_t stream_bytes = 0;   // of one turn; 0 for verbs that have none
  ResourceEstimate estimate;  // with these choices
  uint64_t memory_limit = 0;
  uint64_t activation_bytes = 0;  // of the streams in memory
  uint64_t scratch_bytes = 0;     // of the streams in the scratch file
  std::filesystem::path scratch_folder;
  uint64_t memory_bytes() const { return estimate.fixed_bytes() + activation_bytes; }
};

// Fits the work into the memory there is: smaller turns (verbs that have them: `stream_bytes` > 0), then streams in the
// scratch file, then smaller chunks. None of it changes results beyond rounding. Throws kOutOfResources with the
// estimate, and what to turn down, when nothing helps or the disk lacks the room for the scratch file.
ResourcePlan plan_resources(const Estimator& estimator, const ComputeOptions& compute, const MemoryLimits& limits,
                            int64_t stream_bytes = 0);

// What perplexity takes for the streams of a turn unless it is told: a quarter of the weights' size, at least 256 MiB,
// at most a quarter of the memory that is left. On a CUDA device, where reading weights anew costs more than anything
// that is done with them, a quarter of what it has left.
int64_t default_turn_bytes(const Checkpoint& checkpoint, at::Device device);

// What gradients take for it: a quarter of the weights' size, from 256 MiB to 2 GiB. What is left on the machine has no
// part in it, since sums over turns round differently.
int64_t gradient_turn_bytes(const Checkpoint& checkpoint);

// ---- Time ----

struct MachineRates {
  double forward_flops = 0;  // a second
  double rotation_flops = 0;
  double moment_flops = 0;
  double eigen_cubes = 0;
  double bytes_read = 0;
  double bytes_streamed = 0;
};

// Measures this machine at the model's shapes, in about a second.
MachineRates measure_rates(const ModelConfig& config, const ComputeOptions& compute);

double estimate_seconds(const Work& work, const MachineRates& rates);

// Operations a second of a machine's best matrix products: in the dtype of the forward, in fp32 and in fp64.
struct GemmRates {
  double forward = 0;
  double fp32 = 0;
  double fp64 = 0;
};

// What the work would take if all of it, eigendecompositions included, went as fast as matrix products go.
double ideal_seconds(const Work& work, const GemmRates& peak);

}  // namespace dynslice
