// Training of a few parameters by gradient descent: batches, AdamW, the learning rate's course, validation, and a
// journal that a stopped run goes on from. What is learnt is the objective's business.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dynslice/support/json.h"
#include "dynslice/support/progress.h"
#include "dynslice/walk/journal.h"

namespace dynslice {

struct TrainingOptions {
  int64_t updates = 0;             // of the parameters
  int64_t batch = 8;               // examples an update
  int64_t micro_batch = 1;         // examples that go through the model together
  double learning_rate = 1e-4;     // at its highest
  double final_learning_rate = 0;  // reached by a cosine
  double warmup = 0.01;            // share of the updates in which the rate rises to its highest
  double weight_decay = 0;         // of matrices; decoupled
  double clip = 0;                 // largest norm of all gradients together; 0: any
  int64_t validations = 10;        // spread over the updates, beside the one before the first; 0: none
  int64_t patience = 0;            // validations without a lower loss after which training ends; 0: never
  uint64_t seed = 0;               // of the order of the examples, and of dropout
};

// Throws kUsage for numbers that make no sense together.
void check_training(const TrainingOptions& options, int64_t examples);

// The rate of update `update` (from 0): linear to the highest, then down a half cosine.
[[nodiscard]] double learning_rate_at(const TrainingOptions& options, int64_t update);

// A sum of losses over what carries weight (tokens), and that weight.
struct LossSum {
  double loss = 0;
  double weight = 0;
  [[nodiscard]] double mean() const { return weight > 0 ? loss / weight : 0; }
  LossSum& operator+=(const LossSum& other) {
    loss += other.loss;
    weight += other.weight;
    return *this;
  }
};

class Objective {
 public:
  virtual ~Objective() = default;
  [[nodiscard]] virtual int64_t examples() const = 0;
  [[nodiscard]] virtual double weight(int64_t example) const = 0;
  // Tokens that go through the model for it; for the progress bar.
  [[nodiscard]] virtual int64_t tokens(int64_t example) const = 0;
  // Adds `scale` times the gradient of the examples' loss sum to the parameters'. `seed` is that of dropout.
  virtual LossSum backward(std::span<const int64_t> examples, double scale, uint64_t seed) = 0;
  // On text that is not trained on; nothing when there is none.
  virtual std::optional<LossSum> validate() = 0;
};

struct TrainingPoint {
  int64_t update = 0;        // after so many
  double training_loss = 0;  // mean since the point before
  double validation_loss = 0;
};

struct TrainingResult {
  std::vector<TrainingPoint> points;  // the first one before any update
  int64_t updates = 0;                // made
  int64_t best_update = 0;            // whose parameters were kept
  int64_t tokens = 0;                 // trained on
  bool stopped_early = false;
};
[[nodiscard]] OrderedJson to_json(const TrainingResult& result);

// Trains `parameters`, fp32 tensors that require gradients, in place, and leaves those of the lowest validation loss
// in them (the last ones without validation; as they were when nothing was better). On a CPU the same seed gives the
// same bits, a run that goes on from the journal included (on CUDA LibTorch's attention adds in no fixed order). Throws
// kBadInput when the loss is no longer a number.
[[nodiscard]] TrainingResult train(const std::vector<at::Tensor>& parameters, Objective& objective,
                                   const TrainingOptions& options, const std::string& task, ProgressSink& progress,
                                   const JournalPhase& journal = {});

}  // namespace dynslice
