#include "dynslice/jobs/sizes.h"

#include <iostream>

#include "dynslice/checkpoint/tensor_copy.h"
#include "dynslice/support/format.h"
#include "dynslice/tensor/dtype.h"

namespace dynslice {

SizeChange size_change(const Checkpoint& checkpoint, const ModelConfig& smaller, at::ScalarType out_dtype) {
  SizeChange change{count_cost(checkpoint.config()), count_cost(smaller), stored_bytes(checkpoint), 0, 0};
  const uint64_t item = c10::elementSize(out_dtype);
  change.bytes_after = static_cast<uint64_t>(change.after.parameters) * item;
  change.bytes_before_at_output_dtype = static_cast<uint64_t>(change.before.parameters) * item;
  if (smaller.is_wrapped()) {
    for (const OutputTensor& other : other_tensors(checkpoint)) {
      change.bytes_after += count_bytes(other);
      change.bytes_before_at_output_dtype += count_bytes(other);
    }
  }
  return change;
}

void add_sizes(OrderedJson& json, const SizeChange& change) {
  json["parameters"] = {{"before", change.before.parameters}, {"after", change.after.parameters}};
  json["bytes"] = {{"before", change.bytes_before},
                   {"after", change.bytes_after},
                   {"before_at_output_dtype", change.bytes_before_at_output_dtype}};
  json["flops_per_token"] = {{"before", 2 * change.before.multiply_adds_per_token},
                             {"after", 2 * change.after.multiply_adds_per_token}};
}

at::ScalarType output_dtype(const std::string& name, const Checkpoint& checkpoint) {
  const auto named = weight_dtype_of_option(name);
  return named ? *named : checkpoint.storage_dtype();
}

}  // namespace dynslice
