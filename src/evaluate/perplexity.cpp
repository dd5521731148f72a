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

// Scored losses of all windows, fp64 [windows, scored].
at::Tensor scored_losses(const LayerWalk& walk, const TokenWindows& windows, const PerplexityOptions& options) {
  const int64_t bytes_per_window = windows.length * walk.config().hidden_size * 4;
  const int64_t stream_bytes =
      options.stream_bytes > 0 ? options.stream_bytes : default_turn_bytes(walk.checkpoint());
  const int64_t per_turn = std::max<int64_t>(1, stream_bytes / bytes_per_window);
  const Head head = load_head(walk);
  const int64_t turns = (windows.count + per_turn - 1) / per_turn;
  std::vector<at::Tensor> losses;
  for (int64_t turn = 0; turn < turns; ++turn) {
    const std::string suffix =
        turns > 1 ? " (part " + std::to_string(turn + 1) + " of " + std::to_string(turns) + ")" : "";
    const int64_t first = turn * per_turn;
    const TokenWindows some = windows.part(first, std::min(per_turn, windows.count - first));
    ResidualStream stream = walk.embed(some);
    run_dense(walk, "Layers" + suffix, stream);
    losses.push_back(next_token_losses(walk, head, std::move(stream), some, "Losses" + suffix));
  }
  const int64_t skip = first_scored(options.protocol, windows.length);
  return at::cat(losses).narrow(1, skip, windows.length - 1 - skip);
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
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace dynslice
