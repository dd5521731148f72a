// What the verbs that train share: options resolved for the text at hand, and what is told of the training.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/train/training.h"

namespace dynslice {

// How a text's sequences are used.
struct TrainingSetup {
  TrainingOptions options;
  int64_t held_out = 0;  // at the end
  int64_t sequences = 0;
  int64_t length = 0;  // of the longest
  int64_t trained_tokens() const { return options.updates * options.batch * length; }
  int64_t validated_tokens() const { return (options.validations + 1) * held_out * length; }
  int64_t micro_tokens() const { return options.micro_batch * length; }
};

// Throws kUsage for fp16.
void check_training_dtype(const std::string& dtype);

// Throws kUsage when there is too little text, or numbers do not go together.
TrainingSetup training_setup(const TrainingRequest& options, int64_t sequences, int64_t length, at::Device device);

// Whether inner activations, `bytes` of them, are computed again on the way back.
bool recomputes(const TrainingRequest& options, uint64_t bytes, at::Device device);

}  // namespace dynslice
