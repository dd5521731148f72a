#include "dynslice/generate/generate.h"

#include <algorithm>
#include <chrono>

#include "aten.h"
#include "dynslice/generate/text_stream.h"
#include "dynslice/support/error.h"

namespace dynslice {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void check_length(std::span<const int32_t> prompt, int64_t positions) {
  if (prompt.empty()) throw_error(ErrorKind::kUsage, "the prompt is empty: there is nothing to go on from");
  if (static_cast<int64_t>(prompt.size()) >= positions) {
    throw_error(ErrorKind::kUsage, "the prompt has ", prompt.size(), " tokens; the model has ", positions,
                " positions, one of them for what follows: shorten the prompt");
  }
}

// Runs the prompt through the model, some tokens at a time. Returns the logits behind the last one, [vocab_size].
at::Tensor read_prompt(const ResidentModel& model, std::span<const int32_t> prompt, KeyValueCache& cache,
                       ProgressSink& progress) {
  const auto length = static_cast<int64_t>(prompt.size());
  at::Tensor ids = at::empty({1, length}, at::kLong);
  std::copy(prompt.begin(), prompt.end(), ids.mutable_data_ptr<int64_t>());
  ProgressTask task(progress, "Reading the prompt", length, "tokens");
  at::Tensor stream;
  for (int64_t begin = 0; begin < length;) {
    const int64_t count = std::min(std::max<int64_t>(1, model.options().chunk_tokens), length - begin);
    stream = model.forward(ids.narrow(1, begin, count), cache);
    begin += count;
    task.advance(count);
  }
  return model.logits(stream.narrow(1, stream.size(1) - 1, 1)).flatten();
}

// Takes tokens until one of them is the last.
class Writer {
 public:
  Writer(const Tokenizer& tokenizer, std::span<const int32_t> prompt, const GenerationOptions& options,
         const std::function<void(std::string_view)>& on_text, Generation& result)
      : options_(options),
        on_text_(on_text),
        result_(result),
        stream_(tokenizer, options.continues_prompt ? prompt : std::span<const int32_t>()),
        stops_(options.stops) {}

  // Whether there are to be more.
  bool take(int32_t id, bool has_room) {
    result_.ids.push_back(id);
    const auto& ends = options_.end_ids;
    if (std::find(ends.begin(), ends.end(), id) != ends.end()) return finish(FinishReason::kEnd);
    show(stops_.push(stream_.push(id)));
    if (stops_.is_stopped()) return finish(FinishReason::kStop);
    if (static_cast<int64_t>(result_.ids.size()) >= options_.max_tokens) return finish(FinishReason::kLength);
    return has_room || finish(FinishReason::kContext);
  }

 private:
  bool finish(FinishReason reason) {
    result_.finish = reason;
    show(stops_.push(stream_.finish()) + stops_.finish());
    if (stops_.is_stopped()) result_.finish = FinishReason::kStop;
    return false;
  }

  void show(const std::string& text) {
    if (text.empty()) return;
    result_.text += text;
    on_text_(text);
  }

  const GenerationOptions& options_;
  const std::function<void(std::string_view)>& on_text_;
  Generation& result_;
  TextStream stream_;
  StopText stops_;
};

}  // namespace

const char* name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEnd:
      return "end";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kContext:
      return "context";
  }
  return "unknown";
}

void check_prompt(const Checkpoint& checkpoint, const Tokenizer& tokenizer, std::span<const int32_t> prompt) {
  check_length(prompt, checkpoint.config().max_position_embeddings);
  const int64_t vocab_size = checkpoint.config().vocab_size;
  const auto outside = std::find_if(prompt.begin(), prompt.end(), [&](int32_t id) { return id >= vocab_size; });
  if (outside == prompt.end()) return;
  throw_error(ErrorKind::kBadInput, checkpoint.path().string(), ": its tokenizer gives the prompt token id ", *outside,
              " (\"", tokenizer.decode({&*outside, 1}, false), "\"), but the vocabulary of the model has ", vocab_size,
              " entries: tokenizer and weights are of different models");
}

Generation generate(const ResidentModel& model, const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                    const GenerationOptions& options, const std::function<void(std::string_view)>& on_text,
                    ProgressSink& progress) {
  const int64_t positions = model.config().max_position_embeddings;
  check_length(prompt, positions);
  if (options.max_tokens < 1) throw_error(ErrorKind::kUsage, options.max_tokens, " tokens: must be at least 1");
  const auto length = static_cast<int64_t>(prompt.size());
  // The last token is not read any more, so that it needs no place.
  const int64_t capacity = options.max_tokens - 1 < positions - length ? length + options.max_tokens - 1 : positions;
  Sampler sampler(options.sampling);
  KeyValueCache cache = model.make_cache(1, capacity);
  Generation result;
  result.cache_bytes = cache.bytes();
  Writer writer(tokenizer, prompt, options, on_text, result);

  auto start = Clock::now();
  int32_t id = sampler.next(read_prompt(model, prompt, cache, progress));
  result.prefill_seconds = seconds_since(start);
  start = Clock::now();
  at::Tensor next = at::empty({1, 1}, at::kLong);
  while (writer.take(id, cache.length < positions)) {
    check_interrupt();
    next.fill_(id);
    id = sampler.next(model.logits(model.forward(next, cache)).flatten());
  }
  result.decode_seconds = seconds_since(start);
  return result;
}

}  // namespace dynslice
