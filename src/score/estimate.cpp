#include "dynslice/score/estimate.h"

#include <algorithm>

#include "dynslice/model/tensor_layout.h"
#include "dynslice/walk/walk_estimate.h"
#include "score/zd.h"

namespace dynslice {

ResourceEstimate estimate_score(const Checkpoint& checkpoint, const ComputeOptions& compute, TextAmount text,
                                int64_t kept_streams, int64_t kept_values) {
  ResourceEstimate estimate;
  estimate.parts = larger(walking_parts(checkpoint, compute, text), embedding_parts(checkpoint.config(), compute));
  estimate.stream_bytes = u64(kept_streams * stream_bytes(checkpoint.config(), text) + kept_values * text.tokens() * 4);
  estimate.work = walking_work(checkpoint, text, 1);
  return estimate;
}

ResourceEstimate estimate_weight_scores(const Checkpoint& checkpoint) {
  constexpr uint64_t kReadBuffer = uint64_t{16} << 20;
  ResourceEstimate estimate;
  uint64_t largest = 0;
  for (int64_t layer = 0; layer < checkpoint.config().num_layers(); ++layer) {
    uint64_t bytes = 0;  // in memory
    for (const OutputTensor& weight : linear_weights(checkpoint.config(), layer, at::kFloat)) {
      const TensorInfo* info = checkpoint.find(weight.name);
      if (info == nullptr) continue;  // found missing when it is loaded
      bytes += u64(weight.shape.at(0) * weight.shape.at(1)) * c10::elementSize(held_dtype(*info));
      estimate.work.bytes_read += static_cast<double>(info->bytes);
    }
    largest = std::max(largest, bytes);
  }
  estimate.parts = {program_part(at::kCPU), {"layer_weights", largest}, {"read_buffer", kReadBuffer}};
  return estimate;
}

}  // namespace dynslice
