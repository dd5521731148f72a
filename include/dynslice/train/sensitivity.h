// What the loss says of every half layer: how much an error in what it adds to the stream costs, direction by
// direction. One pass back through the layers, of which one is in memory at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <utility>

#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// Where in the stream errors are.
enum class StreamPlace {
  kInside,   // behind a layer's attention
  kLeaving,  // behind its MLP
};

// With g_t the gradient of the text's summed next-token losses with respect to the stream at token t of such a place:
// errors e_t there raise the loss by about Σ_t (g_t·e_t)² / 2 (the second order, by the Fisher information), which is
// taken for Σ_t ‖g_t‖² e_tᵀ G e_t / 2.
struct Sensitivity {
  at::Tensor directions;  // G = Σ_t g_t g_tᵀ / Σ_t ‖g_t‖² inside and behind every layer [L, 2, d, d] fp32, on the CPU
  at::Tensor sizes;       // mean ‖g_t‖² over the tokens [L, 2] fp64, on the CPU
};

// Streams of all layers are kept for some windows at a time, `turn_bytes` of them, and the layers walked forth and back
// once for those. Gradients are taken in the dtype of the forward, sums of a turn in fp64, over the turns in fp32.
// Throws kBadInput where a gradient is no number. `journal` keeps the finished turns.
[[nodiscard]] Sensitivity measure_sensitivity(const LayerWalk& walk, const TokenWindows& windows, int64_t turn_bytes,
                                              const JournalPhase& journal = {});

// Windows of a turn of that many bytes, at least one.
[[nodiscard]] int64_t sensitivity_turn(const ModelConfig& config, const TokenWindows& windows, int64_t turn_bytes);

// A sensitivity that is measured when it is first needed, unless a journal has brought it back by then.
class SensitivitySource {
 public:
  // None: every direction counts alike, and a layer's loss is half its squared error.
  SensitivitySource() = default;
  // `measure` measures it on that many windows.
  SensitivitySource(int64_t windows, std::function<Sensitivity()> measure)
      : windows_(windows), measure_(std::move(measure)) {}

  // Lets the journal keep it, and bring it back.
  void join(WalkState& state);
  void measure_unless_there();
  [[nodiscard]] bool is_there() const { return value_.directions.defined(); }
  [[nodiscard]] int64_t windows() const { return windows_; }

  // G of one place on `device`, undefined for I; and the mean ‖g_t‖².
  [[nodiscard]] at::Tensor directions(int64_t layer, StreamPlace place, at::Device device) const;
  [[nodiscard]] double size(int64_t layer, StreamPlace place) const;

 private:
  int64_t windows_ = 0;
  std::function<Sensitivity()> measure_;
  Sensitivity value_;
};

}  // namespace dynslice
