// Cutting a stream of tokens into windows.
#include <numeric>
#include <random>
#include <utility>

#include "dynslice/support/error.h"
#include "dynslice/text/datasets/dataset.h"

namespace dynslice {
namespace {

// Uniform in [0, bound): the values above the last whole multiple of `bound` are drawn again.
// std::uniform_int_distribution gives other numbers with other standard libraries.
uint64_t draw_below(std::mt19937_64& generator, uint64_t bound) {
  const uint64_t limit = std::mt19937_64::max() - std::mt19937_64::max() % bound;
  for (;;) {
    const uint64_t value = generator();
    if (value < limit) return value % bound;
  }
}

void shuffle_in_place(std::vector<int64_t>& order, uint64_t seed) {
  std::mt19937_64 generator(seed);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw_below(generator, i)]);
}

TokenRange checked_range(int64_t tokens, const WindowOptions& options) {
  if (options.seqlen < 1)
    throw_error(ErrorKind::kUsage, "sequence length is ", options.seqlen, "; it must be at least 1");
  if (options.samples < 0) {
    throw_error(ErrorKind::kUsage, "number of samples is ", options.samples,
                "; it must be at least 1, or 0 for all that fit");
  }
  const TokenRange range = options.range.value_or(TokenRange{0, tokens});
  if (range.begin < 0 || range.end > tokens || (options.range && range.begin >= range.end)) {
    throw_error(ErrorKind::kUsage, "token range ", range.begin, ":", range.end,
                " does not lie inside of the text, which has ", tokens,
                " tokens; give BEGIN:END with 0 <= BEGIN < END <= ", tokens);
  }
  return range;
}

}  // namespace

TokenWindows cut_windows(const std::vector<int32_t>& stream, const WindowOptions& options) {
  const TokenRange range = checked_range(static_cast<int64_t>(stream.size()), options);
  const int64_t tokens = range.end - range.begin;
  const int64_t available = tokens / options.seqlen;
  if (available == 0) {
    throw_error(ErrorKind::kUsage, "not one window of ", options.seqlen, " tokens fits into ", tokens,
                " tokens; lower --seqlen or give a longer text");
  }
  if (options.samples > available) {
    throw_error(ErrorKind::kUsage, options.samples, " windows of ", options.seqlen, " tokens were asked for, but ",
                tokens, " tokens give only ", available, "; lower --samples or --seqlen, or give a longer text");
  }
  std::vector<int64_t> order(static_cast<size_t>(available));
  std::iota(order.begin(), order.end(), int64_t{0});
  if (options.shuffle) shuffle_in_place(order, *options.shuffle);

  TokenWindows windows;
  windows.count = options.samples == 0 ? available : options.samples;
  windows.length = options.seqlen;
  windows.ids.reserve(static_cast<size_t>(windows.tokens()));
  for (int64_t w = 0; w < windows.count; ++w) {
    const auto first = stream.begin() + range.begin + order[static_cast<size_t>(w)] * options.seqlen;
    windows.ids.insert(windows.ids.end(), first, first + options.seqlen);
  }
  return windows;
}

}  // namespace dynslice
