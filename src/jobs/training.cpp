#include "jobs/training.h"

#include <algorithm>
#include <cmath>

#include "dynslice/support/error.h"
#include "dynslice/support/format.h"
#include "dynslice/support/machine.h"
#include "dynslice/tensor/device_memory.h"

namespace dynslice {

void check_training_dtype(const std::string& dtype) {
  if (dtype == "fp16")
    throw_error(ErrorKind::kUsage, "--dtype fp16: is too narrow for gradients; train with bf16 or fp32");
}

TrainingSetup training_setup(const TrainingRequest& options, int64_t sequences, int64_t length, at::Device device) {
  TrainingSetup setup;
  setup.sequences = sequences;
  setup.length = length;
  setup.held_out = options.held_out > 0 ? options.held_out : std::clamp<int64_t>(sequences / 16, 1, 16);
  const int64_t trained = sequences - setup.held_out;
  if (trained < 1) {
    throw_error(ErrorKind::kUsage, sequences, " sequences of text, ", setup.held_out,
                " of them held out: nothing is left to train on; give more text, or lower --seqlen or --held-out");
  }
  TrainingOptions& train = setup.options;
  if (options.micro_batch > options.batch) {
    throw_error(ErrorKind::kUsage, "--micro-batch ", options.micro_batch, ": is above --batch, which is ",
                options.batch);
  }
  train.batch = std::min(options.batch, trained);
  const int64_t at_once = (device.is_cuda() ? 16384 : 2048) / std::max<int64_t>(1, length);
  train.micro_batch = std::clamp<int64_t>(options.micro_batch > 0 ? options.micro_batch : at_once, 1, train.batch);
  const double updates = options.epochs * static_cast<double>(trained) / static_cast<double>(train.batch);
  train.updates = options.updates ? *options.updates : std::max<int64_t>(1, std::llround(updates));
  train.learning_rate = options.learning_rate;
  train.final_learning_rate =
      options.final_learning_rate.value_or(std::min(options.usual_final_learning_rate, options.learning_rate));
  train.warmup = options.warmup;
  train.weight_decay = options.weight_decay;
  train.clip = options.clip;
  train.validations = options.validations;
  train.patience = options.patience;
  train.seed = options.seed;
  return setup;
}

bool recomputes(const TrainingRequest& options, uint64_t bytes, at::Device device) {
  if (options.keep_activations != KeptActivations::kAuto) return options.keep_activations == KeptActivations::kStreams;
  const uint64_t free = device.is_cuda() ? free_device_bytes(device).value_or(UINT64_MAX) : available_memory_bytes();
  return bytes > free / 4;
}

}  // namespace dynslice
