// What the verbs that measure perplexity say of it.
#pragma once

#include <string>

#include "cli/inputs.h"
#include "dynslice/evaluate/divergence.h"
#include "dynslice/evaluate/perplexity.h"
#include "dynslice/evaluate/text_levels.h"

namespace dynslice::cli {

// "wikitext2 (test)".
std::string title_of(const TextSource& source);

// Text as a model has it, what of it is scored, and how.
struct TextToScore {
  LoadedText loaded;
  ScoredText scored;
  PerplexityOptions measure;  // without the memory for streams, and a journal
};
TextToScore load_text_to_score(const TextOptions& options, PerplexityProtocol protocol, const CommonOptions& common,
                               const Checkpoint& checkpoint, ProgressSink& progress);

// The object under perplexity.NAME.
OrderedJson to_json(const Perplexity& perplexity, const ScoredText& text, const std::string& protocol);
// "perplexity 23.63 ± 0.21", and a line with the figures of words and bytes.
std::string describe(const Perplexity& perplexity, const ScoredText& text);

// The object under divergence.NAME.
OrderedJson to_json(const Divergence& divergence);
// Adds what a report ends with: seconds (to those that are there already), peaks, and where it comes from.
void finish_json(OrderedJson& json, const ComputeOptions& compute, double seconds, const OrderedJson& run_description,
                 const OrderedJson& text);
void print_divergence(const Divergence& divergence, const std::string& reference);

}  // namespace dynslice::cli
