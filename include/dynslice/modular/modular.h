// Modular width compression (MoDeGPT, arXiv 2408.09632, section 4): the residual stream keeps its width, and layers
// lose neurons inside their MLPs and attention heads, the others being refitted to make up for them. Equal sizes give
// an ordinary model.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/plan/budget.h"
#include "dynslice/plan/choices.h"
#include "dynslice/plan/slice_plan.h"
#include "dynslice/train/sensitivity.h"
#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// What least squares fit to the calibration text. Matrices that write to the stream are those behind what attention
// mixes and behind the inside of the MLP.
enum class ModularRefit {
  kSelf,   // writers that lose columns, towards what they added before
  kDense,  // those, and all of MLPs, towards the dense model's stream
  kAll,    // all writers towards the dense model's stream, and all readers towards what they made of it
};

struct ModularOptions {
  // kLoss: optimal brain surgeon, errors weighed by what the loss says of their directions; kLeverage: MoDeGPT's
  // largest ridge leverage scores, ℓ = diag(C (C + λI)⁻¹) with λ the mean diagonal.
  NeuronChoice choice = NeuronChoice::kLoss;
  ModularRefit refit = ModularRefit::kAll;
  bool heads = true;  // loss curves: attention heads may go too
  // What their losses are multiplied by there, default_head_caution unless given.
  std::optional<double> head_caution = std::nullopt;
  double error_share = 0.5;  // of the stream's error so far that a refit towards the dense stream makes up for
  bool by_norm = true;       // tokens weigh by 1 / ‖x_t‖² of the stream; else alike
  double ridge = 1e-4;       // pull of the refitted rows towards what they were, in units of the mean diagonal
};

struct ModularResult {
  // Mean negative log-likelihood (nats a token) of the compressed model on the held-out windows, when there are any.
  std::optional<double> held_out_loss;
};

// Receives the finished tensors of the layers, all of them, in the order of the checkpoint. Empty: only measure.
using LayerTensorSink = std::function<void(const std::string& name, const at::Tensor& values)>;

// Throws kUsage for a model whose MLPs have different sizes, or that is sliced.
void check_modular(const Checkpoint& checkpoint);

// Compresses the layers of the model of `walk` to the plan's sizes. docs/design/refits.md derives the formulas.
//
// 1. In order: each layer on what the layers before it, already compressed, make of `calibration`.
// 2. Matrices that write to the stream, and those that read it, are refitted as `options` say; sums are fp64.
// 3. Weights of tokens and of output directions come from `sensitivity` (one a layer; empty: all 1).
// 4. `held_out` is walked beside. `journal` keeps the streams between layers; tensors of the layers before are then not
//    handed over again.
//
// Throws kBadInput when the plan does not fit or a stream holds NaN.
ModularResult compress_layers(const LayerWalk& walk, const SlicePlan& plan, const TokenWindows& calibration,
                              SensitivitySource& sensitivity, const ModularOptions& options,
                              const LayerTensorSink& sink, const TokenWindows* held_out = nullptr,
                              const JournalPhase& journal = {});

// What making one layer smaller would cost the loss (nats, mean over the tokens), by weights that are gone.
struct LayerCurves {
  LossCurve neurons;              // of the MLP, one by one
  LossCurve heads;                // of the attention, step by step; one point alone where they stay
  std::vector<HeadCount> counts;  // that are left at those steps
};

// Heads are so large a part of a layer that their errors are beyond what the second order tells, the more so from few
// gradients. On SmolLM2-135M plans that count heads twice are up to 2 % worse than those that keep all of them with the
// gradients of 8 windows, and up to 1.4 % better with those of 16; counted four times, few go or none. So 2 with
// gradients of 16 windows or more, else 4.
[[nodiscard]] double default_head_caution(const SensitivitySource& sensitivity);

// By elimination on the dense model's activations, down to `least` neurons and no attention.
[[nodiscard]] std::vector<LayerCurves> measure_loss_curves(const LayerWalk& walk, const TokenWindows& calibration,
                                                           SensitivitySource& sensitivity,
                                                           const ModularOptions& options, int64_t least,
                                                           const JournalPhase& journal = {});

}  // namespace dynslice
