#include "dynslice/train/objectives.h"

#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <numeric>

#include "aten.h"
#include "dynslice/tensor/blocks.h"
#include "dynslice/tensor/kernels.h"
#include "train/differentiable.h"

namespace dynslice {
namespace {

// Rows whose logits are in memory at a time.
constexpr int64_t kLogitRows = 256;

// A layer's forward without gradients, by the walk's faster kernels where no update is in the way.
at::Tensor run_forward(const TrainableLayers& stack, size_t index, const LayerContext& context, const at::Tensor& x,
                       std::optional<uint64_t> seed) {
  const DecoderLayer& layer = stack.layers[index];
  const bool updated = index < stack.updates.size() && !stack.updates[index].parts.empty();
  const bool plain = !updated && layer.gate_up.weight.scalar_type() == stack.dtype;
  if (plain) return forward_layer(layer, context, x);
  return forward_trainable(layer, context, x, stack.dtype, updated ? &stack.updates[index] : nullptr, seed);
}

std::optional<uint64_t> layer_seed(const std::optional<uint64_t>& seed, size_t index) {
  return seed ? std::optional<uint64_t>(*seed + (static_cast<uint64_t>(index) << 40)) : std::nullopt;
}

// Layers forward, what `loss` says of the end, and the layers backward.
class Pass {
 public:
  Pass(const TrainableLayers& stack, const LayerContext& context, std::optional<uint64_t> seed)
      : stack_(stack), context_(context), seed_(seed) {}

  // `loss` gets the stream that leaves the last layer and returns its gradient.
  void run(at::Tensor x, const std::function<at::Tensor(const at::Tensor&)>& loss) {
    const auto first = static_cast<size_t>(stack_.first_trainable);
    for (size_t i = 0; i < stack_.layers.size(); ++i) {
      if (i < first) {
        x = run_forward(stack_, i, context_, x, layer_seed(seed_, i));
      } else if (stack_.recomputes) {
        steps_.push_back({x, {}});
        x = forward_trainable(stack_.layers[i], context_, x, stack_.dtype, updates_of(i), layer_seed(seed_, i));
      } else {
        steps_.push_back(graph_of(i, x));
        x = steps_.back().out.detach();
      }
    }
    at::Tensor gradient = loss(x);
    for (size_t i = stack_.layers.size(); i > first; --i) {
      Step step = std::move(steps_.back());
      steps_.pop_back();
      if (!step.out.defined()) step = graph_of(i - 1, step.in);
      torch::autograd::backward({step.out}, {gradient});
      if (i - 1 > first) gradient = step.in.grad();
    }
  }

 private:
  struct Step {
    at::Tensor in, out;
  };

  Step graph_of(size_t index, const at::Tensor& x) const {
    const c10::AutoGradMode with_gradients(true);
    const at::Tensor in = x.detach().requires_grad_(index > static_cast<size_t>(stack_.first_trainable));
    return {in, forward_trainable(stack_.layers[index], context_, in, stack_.dtype, updates_of(index),
                                  layer_seed(seed_, index))};
  }

  const LayerUpdates* updates_of(size_t index) const {
    return index < stack_.updates.size() ? &stack_.updates[index] : nullptr;
  }

  const TrainableLayers& stack_;
  const LayerContext& context_;
  const std::optional<uint64_t> seed_;
  std::vector<Step> steps_;
};

// Rows of logits, capped where `cap` is not 0: their losses, and with `gradient` that of `scale` times their sum with
// respect to what the output matrix reads.
double logit_rows(const at::Tensor& inputs, const at::Tensor& matrix, const at::Tensor& targets, double scale,
                  double cap, at::Tensor* gradient) {
  at::Tensor logits = differentiable::linear(inputs, matrix, {}, matrix.scalar_type()).to(at::kFloat);
  kernels::soft_cap_(logits, cap);
  const at::Tensor log_sum = kernels::logsumexp_rows(logits);
  const at::Tensor picked = logits.gather(1, targets.unsqueeze(1)).squeeze(1).to(at::kDouble);
  const double loss = (log_sum - picked).sum().item<double>();
  if (gradient == nullptr) return loss;
  const at::Tensor slope = cap != 0 ? 1 - (logits / cap).square_() : at::Tensor();
  logits.sub_(log_sum.to(at::kFloat).unsqueeze(1)).exp_();
  logits.scatter_add_(1, targets.unsqueeze(1), at::full({targets.size(0), 1}, -1.0, logits.options()));
  if (slope.defined()) logits.mul_(slope);
  *gradient = kernels::matmul(logits.mul_(scale).to(matrix.scalar_type()), matrix).to(at::kFloat);
  return loss;
}

// Padded to the longest: ids, and targets of -1 where nothing counts.
struct Batch {
  at::Tensor targets;  // [B * T]
  int64_t length = 0;
};

Batch batch_of(const std::vector<TrainingExample>& set, std::span<const int64_t> examples, at::Device device) {
  Batch batch;
  for (const int64_t e : examples)
    batch.length = std::max(batch.length, static_cast<int64_t>(set[static_cast<size_t>(e)].ids.size()));
  std::vector<int64_t> targets(examples.size() * static_cast<size_t>(batch.length), -1);
  for (size_t row = 0; row < examples.size(); ++row) {
    const TrainingExample& example = set[static_cast<size_t>(examples[row])];
    for (size_t t = static_cast<size_t>(example.first_target); t < example.ids.size(); ++t)
      targets[row * static_cast<size_t>(batch.length) + t - 1] = example.ids[t];
  }
  batch.targets = at::tensor(targets, at::kLong).to(device);
  return batch;
}

int64_t windows_in(const ResidualStream& stream) {
  int64_t count = 0;
  for (const at::Tensor& chunk : stream.chunks) count += chunk.size(0);
  return count;
}

std::vector<int64_t> range(int64_t begin, int64_t end) {
  std::vector<int64_t> numbers(static_cast<size_t>(std::max<int64_t>(0, end - begin)));
  std::iota(numbers.begin(), numbers.end(), begin);
  return numbers;
}

// Calls fn with at most `size` of the numbers at a time.
LossSum sum_over(const std::vector<int64_t>& numbers, int64_t size,
                 const std::function<LossSum(std::span<const int64_t>)>& fn) {
  LossSum sum;
  const std::span<const int64_t> all(numbers);
  for (size_t first = 0; first < all.size(); first += static_cast<size_t>(size))
    sum += fn(all.subspan(first, std::min(static_cast<size_t>(size), all.size() - first)));
  return sum;
}

}  // namespace

at::Tensor output_matrix_of(const Head& head) {
  if (head.is_in_memory) return head.load_rows(0, head.vocab_size);
  at::Tensor matrix;
  for (int64_t begin = 0; begin < head.vocab_size; begin += kVocabularyBlock) {
    const at::Tensor rows = head.load_rows(begin, std::min(head.vocab_size, begin + kVocabularyBlock));
    if (!matrix.defined()) matrix = at::empty({head.vocab_size, head.columns}, rows.options());
    matrix.narrow(0, begin, rows.size(0)).copy_(rows);
  }
  return matrix;
}

std::vector<TrainingExample> examples_of(const TokenWindows& windows) {
  std::vector<TrainingExample> examples;
  for (int64_t w = 0; w < windows.count; ++w) {
    const auto begin = windows.ids.begin() + w * windows.length;
    examples.push_back({{begin, begin + windows.length}, 1});
  }
  return examples;
}

const LayerContext& TrainableLayers::context(int64_t length) const {
  if (context_length_ != length) context_ = make_layer_context(*config, length, device);
  context_length_ = length;
  return context_;
}

std::vector<at::Tensor> make_trainable(DecoderLayer& layer) {
  std::vector<at::Tensor> parameters;
  for (at::Tensor* tensor : tensors_of(layer)) {
    if (!tensor->defined()) continue;
    *tensor = tensor->detach().to(at::kFloat, /*non_blocking=*/false, /*copy=*/true).contiguous().requires_grad_();
    parameters.push_back(*tensor);
  }
  return parameters;
}

std::vector<at::Tensor> parameters_of(const std::vector<LayerUpdates>& updates) {
  std::vector<at::Tensor> parameters;
  for (const LayerUpdates& layer : updates) {
    for (const LowRankUpdate& part : layer.parts) {
      parameters.push_back(part.a);
      parameters.push_back(part.b);
    }
  }
  return parameters;
}

LossSum head_loss(const Head& head, const at::Tensor& output_matrix, const at::Tensor& x, const at::Tensor& targets,
                  double scale, at::Tensor* gradient) {
  const at::Tensor counted = targets.ge(0).nonzero().squeeze(1);
  LossSum sum{0, static_cast<double>(counted.size(0))};
  if (gradient != nullptr) *gradient = at::zeros_like(x);
  for (int64_t first = 0; first < counted.size(0); first += kLogitRows) {
    const at::Tensor rows = counted.narrow(0, first, std::min(kLogitRows, counted.size(0) - first));
    const c10::AutoGradMode with_gradients(gradient != nullptr);
    const at::Tensor leaving = x.index_select(0, rows).detach().requires_grad_(gradient != nullptr);
    at::Tensor inputs = head.is_centred ? final_norm(head, leaving)
                                        : differentiable::rms_norm(leaving, head.norm, head.norm_divisor,
                                                                   head.rms_norm_eps, at::kFloat);
    if (head.rotation.defined()) inputs = differentiable::linear(inputs, head.rotation, head.bias, at::kFloat);
    if (head.logit_scale != 1) inputs = inputs * head.logit_scale;
    at::Tensor of_inputs;
    {
      const c10::NoGradGuard no_gradients;
      sum.loss += logit_rows(inputs.detach(), output_matrix, targets.index_select(0, rows), scale, head.logit_cap,
                             gradient != nullptr ? &of_inputs : nullptr);
    }
    if (gradient == nullptr) continue;
    torch::autograd::backward({inputs}, {of_inputs});
    const c10::NoGradGuard no_gradients;
    gradient->index_copy_(0, rows, leaving.grad());
  }
  return sum;
}

at::Tensor window_of(const ResidualStream& stream, int64_t index) {
  const int64_t per_chunk = stream.chunks.front().size(0);
  const at::Tensor& chunk = stream.chunks.at(static_cast<size_t>(index / per_chunk));
  const at::Tensor window = chunk.narrow(0, index % per_chunk, 1);
  if (!stream.store) return window.to(stream.device, at::kFloat);
  at::Tensor copy = window.to(stream.device, at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  stream.store->drop_pages(chunk);
  return copy;
}

// ---- Next token

LanguageModelObjective::LanguageModelObjective(TrainableLayers& layers, const Head& head, Entry entry,
                                               std::vector<TrainingExample> training,
                                               std::vector<TrainingExample> held_out, int64_t micro_batch)
    : layers_(layers),
      head_(head),
      output_matrix_(output_matrix_of(head)),
      entry_(std::move(entry)),
      training_(std::move(training)),
      held_out_(std::move(held_out)),
      micro_batch_(micro_batch) {}

double LanguageModelObjective::weight(int64_t example) const {
  return static_cast<double>(training_[static_cast<size_t>(example)].targets());
}

int64_t LanguageModelObjective::tokens(int64_t example) const {
  return static_cast<int64_t>(training_[static_cast<size_t>(example)].ids.size());
}

LossSum LanguageModelObjective::backward(std::span<const int64_t> examples, double scale, uint64_t seed) {
  return pass(training_, examples, false, scale, seed);
}

std::optional<LossSum> LanguageModelObjective::validate() {
  if (held_out_.empty()) return std::nullopt;
  return sum_over(range(0, static_cast<int64_t>(held_out_.size())), micro_batch_,
                  [&](std::span<const int64_t> some) { return pass(held_out_, some, true, std::nullopt, 0); });
}

LossSum LanguageModelObjective::pass(const std::vector<TrainingExample>& set, std::span<const int64_t> examples,
                                     bool held_out, std::optional<double> scale, uint64_t seed) {
  const c10::NoGradGuard no_gradients;
  const Batch batch = batch_of(set, examples, layers_.device);
  const LayerContext& context = layers_.context(batch.length);
  at::Tensor x = entry_(examples, held_out, batch.length);
  LossSum sum;
  if (!scale) {
    for (size_t i = 0; i < layers_.layers.size(); ++i) x = run_forward(layers_, i, context, x, std::nullopt);
    return head_loss(head_, output_matrix_, x.view({-1, x.size(-1)}), batch.targets, 0, nullptr);
  }
  Pass(layers_, context, seed).run(std::move(x), [&](const at::Tensor& leaving) {
    at::Tensor gradient;
    sum = head_loss(head_, output_matrix_, leaving.view({-1, leaving.size(-1)}), batch.targets, *scale, &gradient);
    return gradient.view(leaving.sizes());
  });
  return sum;
}

// ---- Streams

StreamObjective::StreamObjective(TrainableLayers& layer, const ResidualStream& entered, const ResidualStream& target,
                                 int64_t held_out_from, at::Tensor map, int64_t micro_batch)
    : layer_(layer),
      entered_(entered),
      target_(target),
      windows_(windows_in(entered)),
      length_(entered.chunks.empty() ? 0 : entered.chunks.front().size(1)),
      held_out_from_(held_out_from),
      map_(std::move(map)),
      micro_batch_(micro_batch) {}

LossSum StreamObjective::backward(std::span<const int64_t> examples, double scale, uint64_t seed) {
  return pass(examples, scale, seed);
}

std::optional<LossSum> StreamObjective::validate() {
  if (held_out_from_ >= windows_) return std::nullopt;
  return sum_over(range(held_out_from_, windows_), micro_batch_,
                  [&](std::span<const int64_t> some) { return pass(some, std::nullopt, 0); });
}

LossSum StreamObjective::pass(std::span<const int64_t> windows, std::optional<double> scale, uint64_t seed) {
  const c10::NoGradGuard no_gradients;
  std::vector<at::Tensor> entering, wanted;
  for (const int64_t window : windows) {
    entering.push_back(window_of(entered_, window));
    wanted.push_back(window_of(target_, window));
  }
  const at::Tensor target = at::cat(wanted);
  const at::Tensor square = target.square().sum(-1);
  const at::Tensor weight = at::where(square.gt(0), square.reciprocal(), at::zeros_like(square));
  LossSum sum{0, static_cast<double>(square.numel())};
  // The loss, and its gradient with respect to what leaves the layer.
  const auto compare = [&](const at::Tensor& y) {
    at::Tensor difference = (map_.defined() ? kernels::linear(y, map_, {}) : y) - target;
    sum.loss = (difference.square().sum(-1) * weight).sum(at::kDouble).item<double>();
    if (!scale) return at::Tensor();
    difference.mul_(weight.unsqueeze(-1)).mul_(2 * *scale);
    if (!map_.defined()) return difference;
    return kernels::matmul(difference.view({-1, difference.size(-1)}), map_).view(y.sizes());
  };
  at::Tensor x = at::cat(entering);
  if (scale) {
    Pass(layer_, layer_.context(length_), seed).run(std::move(x), compare);
  } else {
    const LayerContext& context = layer_.context(length_);
    for (size_t i = 0; i < layer_.layers.size(); ++i) x = run_forward(layer_, i, context, x, std::nullopt);
    compare(x);
  }
  return sum;
}

}  // namespace dynslice
