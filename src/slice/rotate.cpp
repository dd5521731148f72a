#include "slice/rotate.h"

#include <algorithm>

#include "aten.h"
#include "dynslice/tensor/blocks.h"
#include "dynslice/tensor/kernels.h"

namespace dynslice {

void rotate_input(Linear& linear, const at::Tensor& basis) {
  linear.weight = kernels::matmul(linear.weight, basis.to(at::kFloat));
}

void rotate_output(Linear& linear, const at::Tensor& basis) {
  const at::Tensor basis32 = basis.to(at::kFloat).t();
  linear.weight = kernels::matmul(basis32, linear.weight);
  if (linear.bias.defined()) linear.bias = at::matmul(basis32, linear.bias);
}

void write_rotated_rows(const LayerWalk& walk, const TensorSink& sink, const std::string& name,
                        const std::string& source, const at::Tensor& basis, const at::Tensor& column_scale) {
  const int64_t vocab = walk.config().vocab_size, width = walk.config().hidden_size;
  const at::Device device = walk.options().device;
  const at::Tensor basis32 = basis.defined() ? basis.to(at::kFloat) : basis;
  ProgressTask progress(walk.progress(), (basis.defined() ? "Rotating " : "Copying ") + name, vocab, "rows");
  for (int64_t begin = 0; begin < vocab; begin += kVocabularyBlock) {
    const int64_t end = std::min(vocab, begin + kVocabularyBlock);
    at::Tensor rows = walk.checkpoint().load_rows(source, {vocab, width}, begin, end, at::kFloat).to(device);
    if (column_scale.defined()) rows = rows * column_scale;
    if (basis.defined()) rows = kernels::matmul(rows, basis32);
    sink.write_rows(name, begin, rows);
    progress.advance(end - begin);
  }
}

}  // namespace dynslice
