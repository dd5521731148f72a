#include "dynslice/tensor/logit_blocks.h"

#include "aten.h"

namespace dynslice {

at::Tensor next_ids(const TokenWindows& windows, at::Device device) {
  const at::Tensor ids =
      at::tensor(at::ArrayRef<int32_t>(windows.ids), at::kLong).view({windows.count, windows.length});
  at::Tensor next = at::zeros_like(ids);
  next.narrow(1, 0, windows.length - 1).copy_(ids.narrow(1, 1, windows.length - 1));
  return next.view({-1}).to(device);
}

void pick_targets(at::Tensor picked, const at::Tensor& logits, const at::Tensor& targets, int64_t begin) {
  const at::Tensor column = targets - begin;
  const at::Tensor inside = column.ge(0).logical_and(column.lt(logits.size(1)));
  const at::Tensor found =
      logits.gather(1, column.clamp(0, logits.size(1) - 1).unsqueeze(1)).squeeze(1).to(at::kDouble);
  picked.copy_(at::where(inside, found, picked));
}

}  // namespace dynslice
