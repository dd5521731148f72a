// Tokens to text while they come: whole characters only, and nothing that a later token would change.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dynslice/text/tokenizer/tokenizer.h"

namespace dynslice {

// Guarantees: every piece is valid UTF-8 and final; the pieces together are Tokenizer::decode of all tokens, without
// special ones, after the text of the context, whenever the tokens' bytes make characters. Bytes that make none become
// U+FFFD, each sequence for itself.
class TextStream {
 public:
  // With a `context`, tokens that stand before the first one, the text goes on from it: a tokenizer that takes the
  // space off the front of a text does not take it here. `tokenizer` must outlive the stream.
  explicit TextStream(const Tokenizer& tokenizer, std::span<const int32_t> context = {});

  // The text that the token makes certain; may be empty.
  std::string push(int32_t id);
  // What was held back, when no more tokens come.
  std::string finish();

 private:
  std::string decode_from(size_t begin) const;
  void forget();
  std::string advance(bool is_last);

  const Tokenizer& tokenizer_;
  std::vector<int32_t> window_;  // tokens still needed
  std::string shown_;            // what of the window's text has been given out
  size_t certain_ = 0;           // tokens of the window whose text has been given out as a whole
};

// Ends a text before the first of some strings, of which nothing is shown.
class StopText {
 public:
  // Empty strings are left out.
  explicit StopText(std::vector<std::string> stops);

  // The text that is certain to stand before any stop: what might begin one is held back.
  std::string push(std::string_view text);
  // What was held back, when no more text comes; nothing once stopped.
  std::string finish();
  [[nodiscard]] bool is_stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace dynslice
