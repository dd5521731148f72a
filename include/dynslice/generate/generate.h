// Text out of a model, one token after the other.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dynslice/generate/sampling.h"
#include "dynslice/support/progress.h"
#include "dynslice/text/tokenizer/tokenizer.h"
#include "dynslice/walk/resident_model.h"

namespace dynslice {

struct GenerationOptions {
  SamplingOptions sampling{};
  int64_t max_tokens = 256;
  std::vector<int32_t> end_ids{};    // tokens that end the text; of end_token_ids
  std::vector<std::string> stops{};  // texts before which it ends
  bool continues_prompt = true;      // the text goes on from the prompt's; else it stands for itself, as an answer does
};

enum class FinishReason {
  kEnd,      // a token of end_ids, the last of the ids
  kStop,     // one of the stops, which is not in the text
  kLength,   // max_tokens
  kContext,  // the model has no position for another token
};

// "end", "stop", "length", "context".
[[nodiscard]] const char* name_of(FinishReason reason);

struct Generation {
  std::vector<int32_t> ids;
  std::string text;
  FinishReason finish = FinishReason::kLength;
  double prefill_seconds = 0;  // the prompt through all layers, and the first token
  double decode_seconds = 0;   // all other tokens
  int64_t cache_bytes = 0;
};

// Of the model's tokens those that end a text: eos_token_id of generation_config.json and config.json (all that they
// list) and the tokenizer's; of a GGUF file tokenizer.ggml.{eos,eot,eom}_token_id. Rising; empty when none is known.
// Throws kBadInput for ids that are none.
[[nodiscard]] std::vector<int32_t> end_token_ids(const Checkpoint& checkpoint, const Tokenizer& tokenizer);

// Throws kUsage when there are no `prompt` ids or more than the model has positions for with one token to follow;
// kBadInput, naming tokenizer and model as those of `checkpoint`, for an id that the model does not have.
void check_prompt(const Checkpoint& checkpoint, const Tokenizer& tokenizer, std::span<const int32_t> prompt);

// Reads the prompt, as many tokens at a time as the model's options say, and writes tokens until one of the reasons
// to finish. `on_text` gets the text piece by piece, in whole characters. Throws kUsage as check_prompt and
// check_sampling do, kBadInput for logits that are no numbers, kInterrupted when asked to stop, and what `on_text`
// throws.
[[nodiscard]] Generation generate(const ResidentModel& model, const Tokenizer& tokenizer,
                                  std::span<const int32_t> prompt, const GenerationOptions& options,
                                  const std::function<void(std::string_view)>& on_text, ProgressSink& progress);

}  // namespace dynslice
