#include "dynslice/walk/layer_walk.h"

#include <ATen/detail/CUDAHooksInterface.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "aten.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/blocks.h"
#include "dynslice/tensor/dtype.h"
#include "dynslice/tensor/kernels.h"

namespace dynslice {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";

at::Device parse_device(const std::string& name) {
  const bool cuda = at::hasCUDA();
  if (name == "auto") return cuda ? at::Device(at::kCUDA) : at::Device(at::kCPU);
  if (name == "cpu") return at::kCPU;
  const bool valid =
      name == "cuda" || (name.starts_with("cuda:") && name.size() > 5 && name.size() < 8 &&
                         (name.size() == 6 || name[5] != '0') &&  // LibTorch takes no leading zeros
                         std::all_of(name.begin() + 5, name.end(), [](char c) { return c >= '0' && c <= '9'; }));
  if (!valid) throw_error(ErrorKind::kUsage, "--device ", name, ": is not one of auto, cpu, cuda, cuda:N");
  if (!cuda) throw_error(ErrorKind::kUsage, "--device ", name, ": LibTorch sees no CUDA device; use --device cpu");
  const at::Device device(name);
  const auto count = at::detail::getCUDAHooks().deviceCount();
  if (device.has_index() && device.index() >= count) {
    throw_error(ErrorKind::kUsage, "--device ", name, ": LibTorch sees only ", std::to_string(count),
                " CUDA device(s), numbered from 0");
  }
  return device;
}

at::ScalarType parse_dtype(const std::string& name, at::Device device) {
  if (name == "auto") return device.is_cuda() ? at::kBFloat16 : at::kFloat;
  const auto dtype = weight_dtype_of_option(name);
  if (!dtype) throw_error(ErrorKind::kUsage, "--dtype ", name, ": is not one of auto, fp32, bf16, fp16");
  if (*dtype == at::kHalf && device.is_cpu()) {
    throw_error(ErrorKind::kUsage, "--dtype fp16: is hundreds of times slower than fp32 on a CPU; use fp32 or bf16");
  }
  return *dtype;
}

// Cuts the windows into chunks of about `chunk_tokens` tokens, at least one window each.
ResidualStream stream_of_windows(const TokenWindows& windows, int64_t width, const ComputeOptions& options) {
  const int64_t per_chunk = std::max<int64_t>(1, options.chunk_tokens / windows.length);
  const auto fp32 = at::TensorOptions().dtype(at::kFloat).device(options.device);
  ResidualStream stream{{}, options.activations, options.device};
  for (int64_t first = 0; first < windows.count; first += per_chunk) {
    const std::array<int64_t, 3> sizes = {std::min(per_chunk, windows.count - first), windows.length, width};
    stream.chunks.push_back(stream.store ? stream.store->empty(sizes, fp32) : at::empty(sizes, fp32));
  }
  return stream;
}

}  // namespace

ComputeOptions resolve_compute(const std::string& device, const std::string& dtype) {
  ComputeOptions options;
  options.device = parse_device(device);
  options.dtype = parse_dtype(dtype, options.device);
  if (options.device.is_cuda()) options.chunk_tokens = 16384;
  return options;
}

void LayerStep::transform(ResidualStream& stream, const std::function<at::Tensor(const at::Tensor&)>& fn,
                          double passes) const {
  stream.transform([&](const at::Tensor& chunk) {
    const double tokens = static_cast<double>(chunk.size(0) * chunk.size(1));
    at::Tensor left = fn(chunk);
    progress_.advance(static_cast<int64_t>(tokens / passes));
    return left;
  });
}

LayerWalk::LayerWalk(const Checkpoint& checkpoint, const ComputeOptions& options, int64_t window_length,
                     ProgressSink& progress)
    : checkpoint_(checkpoint),
      options_(options),
      context_(make_layer_context(checkpoint.config(), window_length, options.device)),
      progress_(progress) {}

void LayerWalk::check_ids(const TokenWindows& windows) const {
  const int64_t vocab = config().vocab_size;
  const auto largest = std::max_element(windows.ids.begin(), windows.ids.end());
  if (largest != windows.ids.end() && *largest >= vocab) {
    throw_error(ErrorKind::kBadInput, checkpoint_.path().string(), ": the tokenizer gave id ", *largest,
                " but the model's vocabulary has ", vocab, " entries; the tokenizer belongs to another model");
  }
}

at::Tensor Entrance::pass(const at::Tensor& rows, const at::Tensor& at_positions) const {
  if (scale != 1) rows.mul_(scale);
  if (positions.defined()) rows.add_(positions.index_select(0, at_positions.to(positions.device())));
  if (centres) rows.sub_(rows.mean(-1, /*keepdim=*/true));
  return rotation.defined() ? kernels::linear(rows, rotation, {}) : rows;
}

Entrance load_entrance(const Checkpoint& checkpoint, const ComputeOptions& options) {
  const ModelConfig& config = checkpoint.config();
  const int64_t columns = config.embedding_columns();
  Entrance entrance;
  if (config.embedding_scale != 1)
    entrance.scale = at::scalar_tensor(config.embedding_scale, options.dtype).item<double>();
  if (config.position_rows > 0) {
    entrance.positions = checkpoint.load("model.embed_positions.weight", {config.position_rows, columns}, at::kFloat)
                             .narrow(0, config.first_position_row, config.position_rows - config.first_position_row)
                             .to(options.device);
  }
  entrance.centres = config.centres_embedding();
  if (config.has_embedding_rotation) {
    entrance.rotation = checkpoint.load("model.embed_rotation.weight", {config.embedding_width, columns}, at::kFloat)
                            .to(options.device);
  }
  return entrance;
}

ResidualStream LayerWalk::embed(const TokenWindows& windows, std::span<const int64_t> positions) const {
  check_ids(windows);
  const Entrance entrance = load_entrance(checkpoint_, options_);
  if (entrance.positions.defined() && windows.length > entrance.positions.size(0)) {
    throw_error(ErrorKind::kUsage, "windows of ", windows.length, " tokens: the model has ", entrance.positions.size(0),
                " positions; give a smaller --seqlen");
  }
  const int64_t vocab = config().vocab_size, columns = config().embedding_columns();
  const int64_t width = config().embedding_width;
  // Positions in order of their ids, so that every block of rows serves a run of them.
  std::vector<int64_t> order(windows.ids.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return windows.ids[static_cast<size_t>(a)] < windows.ids[static_cast<size_t>(b)];
  });

  ResidualStream stream = stream_of_windows(windows, width, options_);
  const int64_t chunk_tokens = stream.chunks.empty() ? 1 : stream.chunks.front().size(0) * windows.length;
  auto next = order.begin();
  for (int64_t begin = 0; begin < vocab && next != order.end(); begin += kVocabularyBlock) {
    const int64_t end = std::min(vocab, begin + kVocabularyBlock);
    const auto stop =
        std::find_if(next, order.end(), [&](int64_t p) { return windows.ids[static_cast<size_t>(p)] >= end; });
    if (stop == next) continue;
    const at::Tensor rows =
        checkpoint_.load_rows(kEmbedding, {vocab, columns}, begin, end, at::kFloat).to(options_.device);
    // Sorted by position, the places of one chunk lie side by side.
    std::sort(next, stop);
    while (next != stop) {
      const int64_t chunk = *next / chunk_tokens;
      std::vector<int64_t> places, ids, at_positions;
      for (; next != stop && *next / chunk_tokens == chunk; ++next) {
        places.push_back(*next % chunk_tokens);
        ids.push_back(windows.ids[static_cast<size_t>(*next)] - begin);
        at_positions.push_back(positions.empty() ? *next % windows.length : positions[static_cast<size_t>(*next)]);
      }
      const at::Tensor found =
          entrance.pass(rows.index_select(0, at::tensor(ids).to(options_.device)), at::tensor(at_positions));
      const at::Tensor& home = stream.chunks[static_cast<size_t>(chunk)];
      home.view({-1, width}).index_copy_(0, at::tensor(places).to(home.device()), found.to(home.device()));
      if (stream.store) stream.store->drop_pages(home);
    }
  }
  return stream;
}

void LayerWalk::run(const std::string& task, int64_t tokens, const std::function<void(LayerStep&)>& visit,
                    std::optional<at::ScalarType> weights, const WalkSpan& span) const {
  ProgressTask progress(progress_, task, tokens * config().num_layers(), "token-layers");
  if (span.first_layer > 0) progress.skip(tokens * span.first_layer);
  for (int64_t index = span.first_layer; index < config().num_layers(); ++index) {
    LayerStep step(index, load_decoder_layer(checkpoint_, index, weights.value_or(options_.dtype), options_.device),
                   context_, progress);
    visit(step);
    progress.advance_to(tokens * (index + 1));
    if (span.after_layer) span.after_layer(index + 1);
  }
}

void run_dense(const LayerWalk& walk, const std::string& task, ResidualStream& stream, const WalkSpan& span) {
  const auto visit = [&](LayerStep& step) {
    step.transform(stream, [&](const at::Tensor& x) { return forward_layer(step.layer, step.context, x); });
  };
  walk.run(task, stream.tokens(), visit, std::nullopt, span);
}

}  // namespace dynslice
