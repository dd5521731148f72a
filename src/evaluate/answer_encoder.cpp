#include <utility>

#include "dynslice/evaluate/answers.h"
#include "dynslice/support/error.h"
#include "evaluate/python_text.h"

namespace dynslice {

AnswerEncoder::AnswerEncoder(const Tokenizer& tokenizer, int64_t max_length)
    : tokenizer_(tokenizer), max_length_(max_length), prefix_(tokenizer.bos_id()) {
  if (!prefix_) prefix_ = tokenizer.eos_id();
  if (prefix_) prefix_text_ = tokenizer.decode({&*prefix_, 1}, /*skip_special=*/false);
}

std::vector<int32_t> AnswerEncoder::tokens_of(const std::string& text) const {
  const bool begins_with_bos = !prefix_text_.empty() && text.starts_with(prefix_text_);
  return tokenizer_.encode(text, /*add_special=*/!begins_with_bos);
}

Answer AnswerEncoder::encode(const std::string& whole_context, const std::string& answer, const std::string& where) {
  const std::string_view context = python_rstrip(whole_context);
  const std::string continuation = whole_context.substr(context.size()) + answer;
  std::vector<int32_t> tokens, scored;
  if (!context.empty()) {
    if (context != last_context_) {
      last_tokens_ = tokens_of(std::string(context));
      last_context_ = context;
    }
    tokens = last_tokens_;
    const std::vector<int32_t> whole = tokens_of(std::string(context) + continuation);
    if (whole.size() > tokens.size()) scored.assign(whole.begin() + static_cast<int64_t>(tokens.size()), whole.end());
  } else {
    if (!prefix_) {
      throw_error(ErrorKind::kBadInput, where,
                  ": has an empty context, and the tokenizer has neither BOS nor EOS to stand for it");
    }
    tokens = {*prefix_};
    scored = tokenizer_.encode(continuation, /*add_special=*/false);
    if (!scored.empty() && scored.front() == *prefix_) scored.erase(scored.begin());
  }
  if (scored.empty()) {
    throw_error(ErrorKind::kBadInput, where, ": the answer \"", answer, "\" has no tokens of its own");
  }
  const auto count = static_cast<int64_t>(scored.size());
  if (count > max_length_) {
    throw_error(ErrorKind::kBadInput, where, ": an answer of ", count, " tokens is longer than the model's maximum of ",
                max_length_, " positions");
  }
  tokens.insert(tokens.end(), scored.begin(), scored.end());
  const int64_t excess = std::max<int64_t>(0, static_cast<int64_t>(tokens.size()) - (max_length_ + 1));
  tokens.erase(tokens.begin(), tokens.begin() + excess);
  return {std::move(tokens), count, excess};
}

}  // namespace dynslice
