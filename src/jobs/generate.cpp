#include "dynslice/jobs/generate.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <utility>
#include <variant>

#include "dynslice/jobs/inputs.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/log.h"
#include "dynslice/tensor/dtype.h"
#include "dynslice/text/chat/chat_template.h"
#include "dynslice/text/tokenizer/tokenizer.h"
#include "dynslice/walk/resident_model.h"
#include "dynslice/walk/walk_estimate.h"

namespace dynslice {
namespace {

std::string obtain_prompt(const GenerateRequest& options, const GenerateCallbacks& callbacks) {
  std::string text;
  if (options.prompt) {
    text = *options.prompt;
  } else if (!options.prompt_file.empty() && options.prompt_file != "-") {
    text = read_file(options.prompt_file, kMaxPromptBytes);
  } else {
    if (!callbacks.read_prompt) {
      throw_error(ErrorKind::kUsage,
                  "there is no prompt: give --prompt TEXT, or --prompt-file FILE (- for standard input)");
    }
    text = callbacks.read_prompt();
  }
  if (text.empty()) {
    throw_error(ErrorKind::kUsage,
                "the prompt is empty: give --prompt TEXT, or --prompt-file FILE (- for standard input)");
  }
  return text;
}

SamplingOptions sampling_of(const GenerateRequest& options) {
  const SamplingOptions sampling{
      .temperature = options.temperature, .top_k = options.top_k, .top_p = options.top_p, .seed = options.seed};
  check_sampling(sampling);
  if (sampling.temperature == 0 && (sampling.top_k > 0 || sampling.top_p < 1)) {
    log(LogLevel::kInfo, "--top-k and --top-p are not used: at --temperature 0 the likeliest token is taken");
  }
  return sampling;
}

GenerationOptions generation_options(const GenerateRequest& options) {
  GenerationOptions how;
  how.sampling = sampling_of(options);
  how.max_tokens = options.max_tokens;
  how.stops = options.stops;
  how.continues_prompt = !options.chat;
  return how;
}

std::string in_chat_template(const std::string& message, const GenerateRequest& options, const Checkpoint& checkpoint) {
  const auto chat_template = load_chat_template(checkpoint.path());
  if (!chat_template) {
    throw_error(ErrorKind::kMissingData, checkpoint.path().string(),
                ": has no chat template; leave --chat away, or use a model that was trained to chat");
  }
  std::vector<ChatMessage> messages;
  if (options.system) messages.push_back({"system", *options.system});
  messages.push_back({"user", message});
  return chat_template->render(messages);
}

ResourceEstimate estimate_generation(const Checkpoint& checkpoint, const ComputeOptions& compute, int64_t prompt_tokens,
                                     int64_t max_tokens) {
  const int64_t positions = checkpoint.config().max_position_embeddings;
  const int64_t together = std::min(prompt_tokens, compute.chunk_tokens);
  const int64_t written = std::min(max_tokens, positions - prompt_tokens), others = prompt_tokens - together + written;
  ResourceEstimate all = estimate_resident(checkpoint, compute,
                                           {.batch = 1, .prompt_tokens = together, .decode_tokens = others, .runs = 1});
  all.work.forward_flops *= static_cast<double>(prompt_tokens) / static_cast<double>(together);
  all.work.bytes_streamed *= static_cast<double>(written) / static_cast<double>(others);
  return all;
}

double tokens_per_second(size_t tokens, double seconds) {
  return tokens > 0 && seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

// Where nobody reads the text as it comes, the progress tells how much there is.
Generation write_text(const ResidentModel& model, const Tokenizer& tokenizer, const GenerateResult& asked,
                      const GenerateCallbacks& callbacks, ProgressSink& progress) {
  if (callbacks.on_text) {
    return generate(model, tokenizer, asked.prompt_ids, asked.how, callbacks.on_text, progress);
  }
  ProgressTask task(progress, "Writing", 0, "bytes");
  const auto count = [&](std::string_view text) { task.advance(static_cast<int64_t>(text.size())); };
  return generate(model, tokenizer, asked.prompt_ids, asked.how, count, no_progress());
}

}  // namespace

double GenerateResult::prefill_rate() const { return tokens_per_second(prompt_ids.size(), written.prefill_seconds); }

// The first token came of the prompt.
double GenerateResult::decode_rate() const { return tokens_per_second(written.ids.size() - 1, written.decode_seconds); }

OrderedJson to_json(const GenerateResult& result) {
  const Generation& written = result.written;
  OrderedJson json;
  json["model"] = result.model.string();
  json["chat"] = result.chat;
  json["prompt"] = result.prompt;
  json["prompt_tokens"] = result.prompt_ids.size();
  json["prompt_ids"] = result.prompt_ids;
  json["text"] = written.text;
  json["tokens"] = written.ids.size();
  json["ids"] = written.ids;
  json["finish_reason"] = name_of(written.finish);
  json["prefill"] = {{"tokens_per_second", result.prefill_rate()}, {"seconds", written.prefill_seconds}};
  json["decode"] = {{"tokens_per_second", result.decode_rate()}, {"seconds", written.decode_seconds}};
  const SamplingOptions& sampling = result.how.sampling;
  json["sampling"] = {{"temperature", sampling.temperature},
                      {"top_k", sampling.top_k},
                      {"top_p", sampling.top_p},
                      {"seed", sampling.seed}};
  json["max_tokens"] = result.how.max_tokens;
  json["end_ids"] = result.how.end_ids;
  json["weight_bytes"] = result.weight_bytes;
  json["cache_bytes"] = written.cache_bytes;
  json["dtype"] = dtype_name(result.dtype);
  json["device"] = result.device.str();
  json["threads"] = result.threads;
  add_peaks(json, result.peak);
  return json;
}

Outcome<GenerateResult> run(const GenerateRequest& options, ProgressSink& progress,
                            const GenerateCallbacks& callbacks) {
  GenerateResult result;
  result.how = generation_options(options);
  ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  const auto checkpoint = open_model(options.common, progress);
  const auto tokenizer = load_tokenizer(checkpoint->path());
  result.model = checkpoint->path();
  result.chat = options.chat;
  result.prompt = obtain_prompt(options, callbacks);
  if (options.chat) result.prompt = in_chat_template(result.prompt, options, *checkpoint);
  // A template writes its special tokens itself.
  result.prompt_ids = tokenizer->encode(result.prompt, !options.chat);
  check_prompt(*checkpoint, *tokenizer, result.prompt_ids);
  if (!options.ignore_end) result.how.end_ids = end_token_ids(*checkpoint, *tokenizer);

  const auto length = static_cast<int64_t>(result.prompt_ids.size());
  const auto estimator = [&](const ComputeOptions& with, int64_t) {
    return estimate_generation(*checkpoint, with, length, options.max_tokens);
  };
  auto prepared = prepare(options.common, *checkpoint, compute, {"generate", estimator});
  if (auto* dry_run = std::get_if<DryRun>(&prepared)) return std::move(*dry_run);
  compute = std::get<ResourcePlan>(prepared).compute;
  const ResidentModel model(*checkpoint, compute, progress);
  result.written = write_text(model, *tokenizer, result, callbacks, progress);
  result.weight_bytes = model.weight_bytes();
  result.dtype = compute.dtype;
  result.device = compute.device;
  result.threads = at::get_num_threads();
  result.peak = peak_memory(compute);
  return result;
}

}  // namespace dynslice
