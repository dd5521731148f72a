// Sizes before and after, as every verb that makes a smaller model prints them.
#pragma once

#include <string>
#include <vector>

#include "dynslice/model/checkpoint.h"
#include "dynslice/support/json.h"

namespace dynslice {

struct SizeChange {
  ModelCost before, after;
  uint64_t bytes_before = 0;  // of the tensors on disk
  uint64_t bytes_after = 0;
  uint64_t bytes_before_at_output_dtype = 0;
};

[[nodiscard]] SizeChange size_change(const Checkpoint& checkpoint, const ModelConfig& smaller,
                                     at::ScalarType out_dtype);
void add_sizes(OrderedJson& json, const SizeChange& change);

// The dtype that "", "fp32", "bf16" or "fp16" means for what is written: the source's when none is named.
[[nodiscard]] at::ScalarType output_dtype(const std::string& name, const Checkpoint& checkpoint);

}  // namespace dynslice
