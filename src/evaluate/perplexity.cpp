#include "dynslice/evaluate/perplexity.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "dynslice/model/head.h"
#include "dynslice/model/resources.h"
#include "dynslice/support/error.h"

namespace dynslice {
namespace {

// Loss of the first scored entry of a window of `length`: entry t is the loss of token t + 1.
int64_t first_scored(PerplexityProtocol protocol, int64_t length) {
  return protocol == PerplexityProtocol::kLlamaCpp ? length / 2 : 0;
}

void check_length(const TokenWindows& windows, const ModelConfig& config, PerplexityProtocol protocol) {
  const int64_t least = protocol == PerplexityProtocol::kLlamaCpp ? 4 : 2;
  if (windows.length < least) throw_error(ErrorKind::kUsage, "--seqlen ", windows.length, ": must be at least ", least);
  if (windows.length > config.max_position_embeddings) {
    throw_error(ErrorKind::kUsage, "--seqlen ", windows.length, ": is above the model's maximum of ",
                config.max_position_embeddings, " positions");
  }
}

// Windows walked together: whole chunks of them where there is room, so that how many does not change the arithmetic.
int64_t windows_per_turn(const LayerWalk& walk, const TokenWindows& windows, const PerplexityOptions& options) {
  const int64_t bytes_per_window = windows.length * walk.config().hidden_size * 4;
  const int64_t stream_bytes =
      options.stream_bytes > 0 ? options.stream_bytes : default_turn_bytes(walk.checkpoint(), walk.options().device);
  const int64_t fitting = std::max<int64_t>(1, stream_bytes / bytes_per_window);
  const int64_t chunk = std::max<int64_t>(1, walk.options().chunk_tokens / windows.length);
  return fitting > chunk ? fitting / chunk * chunk : fitting;
}

// Walks the windows through the model in turns. Between layers the journal keeps the turn, its stream, and the losses
// of the turns before.
class LossWalk {
 public:
  LossWalk(const LayerWalk& walk, const TokenWindows& windows, const PerplexityOptions& options)
      : walk_(walk), windows_(windows), options_(options), head_(load_head(walk)) {}

  // Losses of all windows, fp64 [windows, T - 1].
  at::Tensor run() {
    restore();
    const int64_t turns = (windows_.count + per_turn_ - 1) / per_turn_;
    for (; turn_ < turns; ++turn_) {
      const std::string suffix =
          turns > 1 ? " (part " + std::to_string(turn_ + 1) + " of " + std::to_string(turns) + ")" : "";
      const int64_t first = turn_ * per_turn_;
      const TokenWindows some = windows_.part(first, std::min(per_turn_, windows_.count - first));
      if (stream_.chunks.empty()) stream_ = walk_.embed(some);
      run_dense(walk_, "Layers" + suffix, stream_, {first_layer_, [&](int64_t next) { save(next); }});
      const at::Tensor turn_losses = next_token_losses(walk_, head_, std::move(stream_), some, "Losses" + suffix);
      losses_ = losses_.defined() ? at::cat({losses_, turn_losses}) : turn_losses;
      stream_ = {};
      first_layer_ = 0;
    }
    return losses_;
  }

 private:
  WalkState state() {
    WalkState state;
    state.values = {{"windows_per_turn", per_turn_}, {"turn", turn_}};
    state.tensors.emplace_back("losses", &losses_);
    state.streams.emplace_back("stream", &stream_);
    return state;
  }

  void restore() {
    per_turn_ = windows_per_turn(walk_, windows_, options_);
    stream_ = walk_.empty_stream();
    const auto kept = options_.journal.restore(state(), walk_.options().device);
    if (!kept) return;
    first_layer_ = kept->next_layer;
    per_turn_ = kept->values.at("windows_per_turn").get<int64_t>();  // the free memory may be another one now
    turn_ = kept->values.at("turn").get<int64_t>();
    if (losses_.defined()) losses_ = losses_.cpu();
  }

  void save(int64_t next) { options_.journal.save(next, walk_.config().num_layers(), state()); }

  const LayerWalk& walk_;
  const TokenWindows& windows_;
  const PerplexityOptions& options_;
  Head head_;
  int64_t per_turn_ = 0, turn_ = 0, first_layer_ = 0;
  at::Tensor losses_;  // of the turns before
  ResidualStream stream_;
};

// Scored losses of all windows, fp64 [windows, scored].
at::Tensor scored_losses(const LayerWalk& walk, const TokenWindows& windows, const PerplexityOptions& options) {
  const int64_t skip = first_scored(options.protocol, windows.length);
  return LossWalk(walk, windows, options).run().narrow(1, skip, windows.length - 1 - skip);
}

}  // namespace

PerplexityProtocol parse_protocol(const std::string& name) {
  if (name == "full") return PerplexityProtocol::kFull;
  if (name == "llamacpp") return PerplexityProtocol::kLlamaCpp;
  throw_error(ErrorKind::kUsage, "--protocol ", name, ": is not one of full, llamacpp");
}

Perplexity measure_perplexity(const Checkpoint& checkpoint, const ComputeOptions& compute, TokenWindows windows,
                              const PerplexityOptions& options, ProgressSink& progress) {
  check_length(windows, checkpoint.config(), options.protocol);
  if (options.first_token) {
    for (int64_t w = 0; w < windows.count; ++w)
      windows.ids[static_cast<size_t>(w * windows.length)] = *options.first_token;
  }
  const auto start = std::chrono::steady_clock::now();
  const LayerWalk walk(checkpoint, compute, windows.length, progress);
  const at::Tensor losses = scored_losses(walk, windows, options);

  Perplexity result;
  result.windows = windows.count;
  result.tokens = windows.tokens();
  result.seqlen = windows.length;
  result.scored_tokens = losses.numel();
  const double mean = losses.mean().item<double>();
  result.value = std::exp(mean);
  if (losses.numel() > 1) {
    const double variance = losses.var(/*unbiased=*/true).item<double>();
    result.standard_error = result.value * std::sqrt(variance / static_cast<double>(losses.numel()));
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() +
                   options.journal.earlier_seconds();
  return result;
}

}  // namespace dynslice
