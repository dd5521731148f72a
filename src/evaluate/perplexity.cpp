#include "dynslice/evaluate/perplexity.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "aten.h"
#include "dynslice/support/error.h"
#include "dynslice/walk/head.h"
#include "dynslice/walk/memory_plan.h"
#include "evaluate/scored_windows.h"

namespace dynslice {
namespace {

// Walks the windows through the model in turns. Between layers the journal keeps the turn, its stream, and the losses
// of the turns before.
class LossWalk {
 public:
  LossWalk(const LayerWalk& walk, const TokenWindows& windows, const PerplexityOptions& options)
      : walk_(walk), windows_(windows), options_(options), head_(load_head(walk)) {}

  // Losses of all windows, fp64 [windows, T - 1].
  at::Tensor run() {
    restore();
    for (; turn_ * per_turn_ < windows_.count; ++turn_) {
      const auto [some, suffix] = turn_of(windows_, turn_, per_turn_);
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
    state.keep("windows_per_turn", per_turn_);  // the free memory may be another one when the run goes on
    state.keep("turn", turn_);
    state.keep_on_host("losses", losses_);
    state.keep("stream", stream_);
    return state;
  }

  void restore() {
    const int64_t stream_bytes = options_.stream_bytes > 0
                                     ? options_.stream_bytes
                                     : default_turn_bytes(walk_.checkpoint(), walk_.options().device);
    per_turn_ = windows_per_turn(windows_.length * walk_.config().hidden_size * 4, stream_bytes, windows_.length,
                                 walk_.options().chunk_tokens);
    stream_ = walk_.empty_stream();
    first_layer_ = options_.journal.restore(state(), walk_.options().device).value_or(0);
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

}  // namespace

int64_t first_scored_token(PerplexityProtocol protocol, int64_t length) {
  return protocol == PerplexityProtocol::kLlamaCpp ? length / 2 + 1 : 1;
}

void check_windows(const TokenWindows& windows, const ModelConfig& config, PerplexityProtocol protocol) {
  const int64_t least = protocol == PerplexityProtocol::kLlamaCpp ? 4 : 2;
  if (windows.length < least) throw_error(ErrorKind::kUsage, "--seqlen ", windows.length, ": must be at least ", least);
  if (windows.length > config.max_position_embeddings) {
    throw_error(ErrorKind::kUsage, "--seqlen ", windows.length, ": is above the model's maximum of ",
                config.max_position_embeddings, " positions");
  }
}

void replace_first_tokens(TokenWindows& windows, const PerplexityOptions& options) {
  if (!options.first_token) return;
  for (int64_t w = 0; w < windows.count; ++w)
    windows.ids[static_cast<size_t>(w * windows.length)] = *options.first_token;
}

int64_t windows_per_turn(int64_t bytes_per_window, int64_t stream_bytes, int64_t length, int64_t chunk_tokens) {
  const int64_t fitting = std::max<int64_t>(1, stream_bytes / bytes_per_window);
  const int64_t chunk = std::max<int64_t>(1, chunk_tokens / length);
  return fitting > chunk ? fitting / chunk * chunk : fitting;
}

WindowTurn turn_of(const TokenWindows& all, int64_t turn, int64_t per_turn) {
  const int64_t first = turn * per_turn, turns = (all.count + per_turn - 1) / per_turn;
  return {all.part(first, std::min(per_turn, all.count - first)),
          turns > 1 ? " (part " + std::to_string(turn + 1) + " of " + std::to_string(turns) + ")" : ""};
}

at::Tensor scored(const at::Tensor& values, const TokenWindows& windows, PerplexityProtocol protocol) {
  const int64_t skip = first_scored_token(protocol, windows.length) - 1;  // entry t is of token t + 1
  return values.narrow(1, skip, windows.length - 1 - skip);
}

Estimate mean_of(const at::Tensor& values) {
  Estimate estimate{values.mean().item<double>(), 0};
  if (values.numel() > 1)
    estimate.standard_error =
        std::sqrt(values.var(/*unbiased=*/true).item<double>() / static_cast<double>(values.numel()));
  return estimate;
}

Perplexity perplexity_of(const at::Tensor& losses, const TokenWindows& windows) {
  Perplexity result;
  result.windows = windows.count;
  result.tokens = windows.tokens();
  result.seqlen = windows.length;
  result.scored_tokens = losses.numel();
  const Estimate mean = mean_of(losses);
  result.mean_loss = mean.value;
  result.value = std::exp(mean.value);
  result.standard_error = result.value * mean.standard_error;
  const at::Tensor by_window = losses.mean(1).contiguous();
  result.window_losses.assign(by_window.const_data_ptr<double>(), by_window.const_data_ptr<double>() + windows.count);
  return result;
}

Perplexity measure_perplexity(const Checkpoint& checkpoint, const ComputeOptions& compute, TokenWindows windows,
                              const PerplexityOptions& options, ProgressSink& progress) {
  check_windows(windows, checkpoint.config(), options.protocol);
  replace_first_tokens(windows, options);
  const auto start = std::chrono::steady_clock::now();
  const LayerWalk walk(checkpoint, compute, windows.length, progress);
  const at::Tensor losses = LossWalk(walk, windows, options).run();
  Perplexity result = perplexity_of(scored(losses, windows, options.protocol), windows);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() +
                   options.journal.earlier_seconds();
  return result;
}

}  // namespace dynslice
