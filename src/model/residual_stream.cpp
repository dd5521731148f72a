#include "dynslice/model/residual_stream.h"

#include <ATen/Functions.h>

namespace dynslice {

int64_t ResidualStream::tokens() const {
  int64_t count = 0;
  for (const at::Tensor& chunk : chunks) count += chunk.size(0) * chunk.size(1);
  return count;
}

at::Tensor ResidualStream::gather() const { return at::cat(chunks); }

}  // namespace dynslice
