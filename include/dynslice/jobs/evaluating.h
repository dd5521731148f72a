// What the verbs that measure perplexity say of it.
#pragma once

#include <string>

#include "dynslice/evaluate/divergence.h"
#include "dynslice/evaluate/perplexity.h"
#include "dynslice/evaluate/text_levels.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/prepare.h"

namespace dynslice {

// "wikitext2 (test)".
[[nodiscard]] std::string title_of(const TextSource& source);

// Text as a model has it, what of it is scored, and how.
struct TextToScore {
  LoadedText loaded;
  ScoredText scored;
  PerplexityOptions measure;  // without the memory for streams, and a journal
};
TextToScore load_text_to_score(const TextOptions& options, PerplexityProtocol protocol, const CommonOptions& common,
                               const Checkpoint& checkpoint, ProgressSink& progress);

// The object under perplexity.NAME.
OrderedJson to_json(const Perplexity& perplexity, const ScoredText& text, PerplexityProtocol protocol);
// The object under divergence.NAME.
OrderedJson to_json(const Divergence& divergence);
// Adds what a report ends with: seconds (to those that are there already), peaks, and where it comes from.
void finish_json(OrderedJson& json, const PeakMemory& peak, double seconds, const OrderedJson& run_description,
                 const OrderedJson& text);

// Ids mean nothing to a model of another vocabulary. Whether two vocabularies are one shows in what becomes of the
// text, which is `checkpoint`'s. Throws kUsage when the reference's tokenizer makes other tokens of it.
void check_same_tokens(const Checkpoint& reference, const Checkpoint& checkpoint, const LoadedText& text);

}  // namespace dynslice
