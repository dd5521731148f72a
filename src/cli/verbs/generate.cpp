#include "dynslice/generate/generate.h"

#include <ATen/Parallel.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <iostream>
#include <iterator>

#include "cli/verbs/prepare_and_show.h"
#include "cli/verbs/verbs.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/log.h"
#include "dynslice/text/chat/chat_template.h"
#include "dynslice/text/tokenizer/tokenizer.h"
#include "dynslice/walk/walk_estimate.h"

namespace dynslice::cli {
namespace {

constexpr uint64_t kMaxPromptBytes = uint64_t{64} << 20;

std::string read_standard_input() {
  std::string text;
  std::vector<char> buffer(1 << 16);
  ssize_t count = 0;
  do {
    // read() alone would go on waiting after a Ctrl-C.
    pollfd input{STDIN_FILENO, POLLIN, 0};
    while (::poll(&input, 1, /*milliseconds=*/200) <= 0) check_interrupt();
    count = ::read(STDIN_FILENO, buffer.data(), buffer.size());
    if (count > 0) text.append(buffer.data(), static_cast<size_t>(count));
    if (text.size() > kMaxPromptBytes) {
      throw_error(ErrorKind::kUsage, "standard input: has more than the ", kMaxPromptBytes, " bytes of a prompt");
    }
  } while (count > 0 || (count < 0 && errno == EINTR));
  if (count < 0) throw_error(ErrorKind::kMissingData, "standard input: cannot be read");
  return text;
}

std::string read_prompt(const GenerateRequest& options) {
  std::string text;
  if (options.prompt) {
    text = *options.prompt;
  } else if (!options.prompt_file.empty() && options.prompt_file != "-") {
    text = read_file(options.prompt_file, kMaxPromptBytes);
  } else {
    if (options.prompt_file.empty() && ::isatty(STDIN_FILENO) != 0) {
      throw_error(ErrorKind::kUsage,
                  "there is no prompt: give --prompt TEXT, or --prompt-file FILE (- for standard input)");
    }
    text = read_standard_input();
  }
  if (text.empty()) {
    throw_error(ErrorKind::kUsage,
                "the prompt is empty: give --prompt TEXT, or --prompt-file FILE (- for standard input)");
  }
  return text;
}

SamplingOptions sampling_of(const GenerateRequest& options) {
  const SamplingOptions sampling{options.temperature, options.top_k, options.top_p, options.seed};
  check_sampling(sampling);
  if (sampling.temperature == 0 && (sampling.top_k > 0 || sampling.top_p < 1)) {
    log(LogLevel::kInfo, "--top-k and --top-p are not used: at --temperature 0 the likeliest token is taken");
  }
  return sampling;
}

// The prompt as the model is to read it.
struct Prompt {
  std::string text;
  std::vector<int32_t> ids;
};

Prompt make_prompt(const GenerateRequest& options, const Checkpoint& checkpoint, const Tokenizer& tokenizer) {
  Prompt prompt{read_prompt(options), {}};
  if (options.chat) {
    const auto chat_template = load_chat_template(checkpoint.path());
    if (!chat_template) {
      throw_error(ErrorKind::kMissingData, checkpoint.path().string(),
                  ": has no chat template; leave --chat away, or use a model that was trained to chat");
    }
    std::vector<ChatMessage> messages;
    if (options.system) messages.push_back({"system", *options.system});
    messages.push_back({"user", prompt.text});
    prompt.text = chat_template->render(messages);
  }
  prompt.ids = tokenizer.encode(prompt.text, !options.chat);  // a template writes its special tokens itself
  check_prompt(checkpoint, tokenizer, prompt.ids);
  return prompt;
}

ResourceEstimate estimate(const Checkpoint& checkpoint, const ComputeOptions& compute, int64_t prompt_tokens,
                          int64_t max_tokens) {
  const int64_t positions = checkpoint.config().max_position_embeddings;
  const int64_t together = std::min(prompt_tokens, compute.chunk_tokens);
  const int64_t written = std::min(max_tokens, positions - prompt_tokens), others = prompt_tokens - together + written;
  ResourceEstimate all = estimate_resident(checkpoint, compute, {1, together, others, 1});
  all.work.forward_flops *= static_cast<double>(prompt_tokens) / static_cast<double>(together);
  all.work.bytes_streamed *= static_cast<double>(written) / static_cast<double>(others);
  return all;
}

// Whoever reads standard output may go away at any time, as `head` does: nothing that needs a message.
void write_out(std::string_view text) {
  std::cout << text << std::flush;
  if (std::cout) return;
  if (errno == EPIPE) throw OutputClosed();
  throw_error(ErrorKind::kOutOfResources, "stdout: cannot be written; is the disk full?");
}

double rate(size_t tokens, double seconds) {
  return tokens > 0 && seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

void print_json(const GenerateRequest& options, const ComputeOptions& compute, const Checkpoint& checkpoint,
                const Prompt& prompt, const GenerationOptions& how, const Generation& result, int64_t weight_bytes) {
  OrderedJson json;
  json["model"] = checkpoint.path().string();
  json["chat"] = options.chat;
  json["prompt"] = prompt.text;
  json["prompt_tokens"] = prompt.ids.size();
  json["prompt_ids"] = prompt.ids;
  json["text"] = result.text;
  json["tokens"] = result.ids.size();
  json["ids"] = result.ids;
  json["finish_reason"] = name_of(result.finish);
  json["prefill"] = {{"tokens_per_second", rate(prompt.ids.size(), result.prefill_seconds)},
                     {"seconds", result.prefill_seconds}};
  json["decode"] = {{"tokens_per_second", rate(result.ids.size() - 1, result.decode_seconds)},
                    {"seconds", result.decode_seconds}};
  const SamplingOptions& sampling = how.sampling;
  json["sampling"] = {{"temperature", sampling.temperature},
                      {"top_k", sampling.top_k},
                      {"top_p", sampling.top_p},
                      {"seed", sampling.seed}};
  json["max_tokens"] = how.max_tokens;
  json["end_ids"] = how.end_ids;
  json["weight_bytes"] = weight_bytes;
  json["cache_bytes"] = result.cache_bytes;
  json["dtype"] = dtype_name(compute.dtype);
  json["device"] = compute.device.str();
  json["threads"] = at::get_num_threads();
  add_peaks(json, peak_memory(compute));
  std::cout << to_text(json);
}

std::string describe_end(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEnd:
      return "ended by the model";
    case FinishReason::kStop:
      return "ended by --stop";
    case FinishReason::kLength:
      return "ended by --max-tokens";
    case FinishReason::kContext:
      return "ended by the model's last position";
  }
  return "";
}

// The text as it comes, with the message of an interruption on a line of its own.
Generation write_text(const ResidentModel& model, const Tokenizer& tokenizer, const Prompt& prompt,
                      const GenerationOptions& how, TerminalProgress& progress) {
  bool has_text = false;
  try {
    Generation result = generate(
        model, tokenizer, prompt.ids, how,
        [&](std::string_view text) {
          has_text = true;
          write_out(text);
        },
        progress);
    write_out("\n");
    return result;
  } catch (const Error&) {
    if (has_text) std::cout << '\n' << std::flush;
    throw;
  }
}

}  // namespace

void run(const GenerateRequest& options, TerminalProgress& progress) {
  GenerationOptions how;
  how.sampling = sampling_of(options);
  how.max_tokens = options.max_tokens;
  how.stops = options.stops;
  how.continues_prompt = !options.chat;
  ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  const auto checkpoint = open_model(options.common, progress);
  const auto tokenizer = load_tokenizer(checkpoint->path());
  const Prompt prompt = make_prompt(options, *checkpoint, *tokenizer);
  if (!options.ignore_end) how.end_ids = end_token_ids(*checkpoint, *tokenizer);

  const auto length = static_cast<int64_t>(prompt.ids.size());
  const auto plan = prepare_or_show(options.common, *checkpoint, compute,
                                    {"generate", [&](const ComputeOptions& with, int64_t) {
                                       return estimate(*checkpoint, with, length, how.max_tokens);
                                     }});
  if (!plan) return;
  compute = plan->compute;
  const ResidentModel model(*checkpoint, compute, progress);
  if (options.common.json) {
    ProgressTask task(progress, "Writing", 0, "bytes");
    const Generation result = generate(
        model, *tokenizer, prompt.ids, how,
        [&](std::string_view text) { task.advance(static_cast<int64_t>(text.size())); }, no_progress());
    print_json(options, compute, *checkpoint, prompt, how, result, model.weight_bytes());
    return;
  }
  const Generation result = write_text(model, *tokenizer, prompt, how, progress);
  log(LogLevel::kInfo, "Prompt of " + std::to_string(length) + " tokens at " +
                           format_fixed(rate(prompt.ids.size(), result.prefill_seconds), 1) + " tokens/s, " +
                           std::to_string(result.ids.size()) + " written at " +
                           format_fixed(rate(result.ids.size() - 1, result.decode_seconds), 1) + " tokens/s, " +
                           describe_end(result.finish) + "; " + dtype_name(compute.dtype) + " on " +
                           compute.device.str() + ", peak memory " + format_bytes(peak_rss_bytes()));
}

}  // namespace dynslice::cli
