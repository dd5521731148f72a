// Added tokens: strings such as "<s>" or "<|im_end|>" that are one token wherever they stand in a text.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace dynslice {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = false;      // left out of decoded text on request
  bool normalized = false;   // found in the normalized text, in its normalized form
  bool single_word = false;  // not found inside of words
  bool lstrip = false;       // swallows the white space on its left
  bool rstrip = false;
};

// Finds the longest of a set of strings at each place.
class StringMatcher {
 public:
  void add(std::string_view pattern, size_t value);  // a later one replaces an equal earlier one
  bool empty() const { return nodes_.size() == 1; }

  struct Match {
    size_t begin;
    size_t end;
    size_t value;
  };
  // The leftmost match that begins at `from` or later, the longest of those.
  std::optional<Match> find(std::string_view text, size_t from) const;

 private:
  struct Node {
    std::vector<std::pair<char, size_t>> children;
    std::optional<size_t> value;
    const size_t* child(char byte) const;
  };
  std::optional<Match> longest_at(std::string_view text, size_t at) const;

  std::vector<Node> nodes_{1};
};

// A part of a text: an added token, or text in between.
struct TextPart {
  std::optional<int32_t> id;
  std::string_view text;
};

// Guarantees the behaviour of Hugging Face's AddedVocabulary. Tokens with an equal id replace each other.
class AddedTokens {
 public:
  // `normalize` gives a token's normalized form; empty when there is no normalizer.
  AddedTokens(std::vector<AddedToken> tokens, const std::function<std::string(std::string)>& normalize);

  // Cuts at tokens that are found in text as it stands, and at those that are found in normalized text.
  std::vector<TextPart> split_raw(std::string_view text) const { return split(text, raw_); }
  std::vector<TextPart> split_normalized(std::string_view text) const { return split(text, normalized_); }

  // What the decoder gets for `id`: the normalized form where there is one. nullptr when there is no such token.
  const std::string* decoded_form(int32_t id) const;
  bool is_special(std::string_view content) const { return special_.contains(std::string(content)); }
  std::optional<int32_t> id_of(std::string_view content) const;
  const std::vector<AddedToken>& tokens() const { return tokens_; }

 private:
  std::vector<TextPart> split(std::string_view text, const StringMatcher& matcher) const;

  std::vector<AddedToken> tokens_;
  std::vector<std::string> forms_;  // of tokens_, as the decoder gets them
  std::unordered_map<int32_t, size_t> by_id_;
  std::unordered_set<std::string> special_;
  StringMatcher raw_;
  StringMatcher normalized_;
};

}  // namespace dynslice
