// How likely a model finds answers after their contexts: what every task is measured by.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/resources/estimate.h"
#include "dynslice/text/tokenizer/tokenizer.h"
#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// A context and what may follow it, as token ids: those of the context, and those of the continuation, which are
// scored.
struct Answer {
  std::vector<int32_t> ids;
  int64_t scored = 0;  // the last ones, at least one; fewer than all
  int64_t cut = 0;     // ids of the context left out at its beginning, for the model's maximum
};

// Tokenizes as lm-evaluation-harness' `hf` model does: spaces at the end of the context belong to the continuation; the
// continuation's tokens are those that the tokens of both together have beyond as many as the context's alone; special
// tokens are what the tokenizer adds, none where the text begins with BOS itself. An empty context is BOS, else EOS. Of
// more than `max_length` + 1 tokens the last ones are taken.
class AnswerEncoder {
 public:
  // `tokenizer` must outlive it.
  AnswerEncoder(const Tokenizer& tokenizer, int64_t max_length);

  // Throws kBadInput, with `where` in front, for a continuation without tokens or of more than `max_length`, and for an
  // empty context when the tokenizer has neither BOS nor EOS.
  Answer encode(const std::string& context, const std::string& continuation, const std::string& where);

 private:
  std::vector<int32_t> tokens_of(const std::string& text) const;

  const Tokenizer& tokenizer_;
  int64_t max_length_;
  std::optional<int32_t> prefix_;  // BOS, else EOS
  std::string prefix_text_;
  std::string last_context_;  // whose tokens are kept: answers to one question share it
  std::vector<int32_t> last_tokens_;
};

struct AnswerScore {
  double log_likelihood = 0;  // of all scored tokens together, in nats
  bool is_greedy = false;     // no other token is likelier at any of them
};

struct AnswerOptions {
  // Bytes that the residual stream of the answers walked together may take; more are walked in turns, each of which
  // reads the weights again.
  int64_t stream_bytes = int64_t{256} << 20;
  JournalPhase journal = {};  // keeps the scores of finished turns, and the stream between layers
  std::string title = "";     // " of OTHER": behind the tasks' names in progress
};

// Scores the answers, in any order, in one streamed walk over the layers: a token that several answers begin with is
// computed once, and logits are made only where a token is scored. Results do not depend on what is scored together,
// beyond rounding. Throws kBadInput for ids outside the vocabulary, or when logits are NaN.
[[nodiscard]] std::vector<AnswerScore> score_answers(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                                     const std::vector<Answer>& answers, const AnswerOptions& options,
                                                     ProgressSink& progress);

// Tokens that a walk computes for these answers.
struct AnswerAmount {
  int64_t rows = 0;     // shared ones counted once
  int64_t longest = 0;  // tokens of one answer
};
[[nodiscard]] AnswerAmount count_rows(const std::vector<Answer>& answers);

// What scoring needs, as many rows at a time as `stream_bytes` allow.
[[nodiscard]] ResourceEstimate estimate_answers(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                                AnswerAmount amount, int64_t stream_bytes);

}  // namespace dynslice
