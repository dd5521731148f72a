#include "score/cka.h"

#include <algorithm>

#include "aten.h"
#include "dynslice/walk/journaled_walk.h"

namespace dynslice {
namespace {

// The walk that leaves the Gram matrices of every stream behind.
class GramWalk {
 public:
  explicit GramWalk(const LayerWalk& walk)
      : walk_(walk), grams_(static_cast<size_t>(walk.config().num_layers() + 1), walk.empty_stream()) {}

  const std::vector<ResidualStream>& run(const TokenWindows& windows, const JournalPhase& journal) {
    stream_ = walk_.empty_stream();
    run_journaled(walk_, journal,
                  {.task = "Scoring layers",
                   .tokens = windows.tokens(),
                   .state = [&] { return state(); },
                   .begin = [&] { begin(windows); },
                   .visit = [&](LayerStep& step) { visit(step); }});
    return grams_;
  }

 private:
  void begin(const TokenWindows& windows) {
    stream_ = walk_.embed(windows);
    size_t chunk = 0;
    grams_[0].chunks.resize(stream_.chunks.size());
    stream_.visit([&](const at::Tensor& x) { grams_[0].replace(chunk++, gram_matrices(x)); });
  }

  void visit(LayerStep& step) {
    ResidualStream& grams = grams_[static_cast<size_t>(step.index() + 1)];
    grams.chunks.resize(stream_.chunks.size());
    size_t chunk = 0;
    step.transform(stream_, [&](const at::Tensor& x) {
      at::Tensor y = forward_layer(step.layer, step.context, x);
      grams.replace(chunk++, gram_matrices(y));
      return y;
    });
  }

  WalkState state() {
    WalkState state;
    state.keep("stream", stream_);
    for (size_t i = 0; i < grams_.size(); ++i) state.keep("grams " + std::to_string(i), grams_[i]);
    return state;
  }

  const LayerWalk& walk_;
  ResidualStream stream_;
  std::vector<ResidualStream> grams_;  // of x_0 ... x_L, chunk by chunk
};

}  // namespace

at::Tensor gram_matrices(const at::Tensor& x) {
  const int64_t length = x.size(1), width = x.size(2);
  const int64_t batches = (length + kCkaTokens - 1) / kCkaTokens, n = length / batches;
  // Token k + t * batches of a window is token t of its minibatch k.
  const at::Tensor batched = x.narrow(1, 0, n * batches)
                                 .reshape({x.size(0), n, batches, width})
                                 .transpose(1, 2)
                                 .reshape({x.size(0) * batches, n, width});
  at::Tensor grams = at::bmm(batched, batched.transpose(1, 2));
  grams.diagonal(0, 1, 2).zero_();
  return grams;
}

at::Tensor unbiased_hsic(const std::vector<at::Tensor>& grams) {
  const auto n = static_cast<double>(grams.front().size(0));
  const at::Tensor all = at::stack(grams).to(at::kDouble);  // [s, n, n]
  const at::Tensor flat = all.flatten(1), rows = all.sum(2), sums = rows.sum(1, /*keepdim=*/true);
  return (at::mm(flat, flat.t()) + at::mm(sums, sums.t()) / ((n - 1) * (n - 2)) -
          at::mm(rows, rows.t()) * (2 / (n - 2))) /
         (n * (n - 3));
}

at::Tensor cka_of_streams(const LayerWalk& walk, const TokenWindows& windows, const JournalPhase& journal) {
  GramWalk grams_walk(walk);
  const std::vector<ResidualStream>& grams = grams_walk.run(windows, journal);
  const auto streams = static_cast<int64_t>(grams.size());
  const at::Device device = walk.options().device;
  at::Tensor hsic = at::zeros({streams, streams}, at::TensorOptions().dtype(at::kDouble).device(device));
  for (size_t chunk = 0; chunk < grams.front().chunks.size(); ++chunk) {
    for (int64_t batch = 0; batch < grams.front().chunks[chunk].size(0); ++batch) {
      std::vector<at::Tensor> one;
      for (const ResidualStream& stream : grams) one.push_back(stream.chunks[chunk][batch].to(device));
      hsic.add_(unbiased_hsic(one));
      check_interrupt();
    }
    for (const ResidualStream& stream : grams) {
      if (stream.store) stream.store->drop_pages(stream.chunks[chunk]);
    }
  }
  const at::Tensor sums = hsic.cpu(), root = sums.diagonal().sqrt();
  return sums / (root.unsqueeze(0) * root.unsqueeze(1));
}

}  // namespace dynslice
