#include "text/tokenizer/tokenizer_added_tokens.h"

#include <algorithm>

#include "dynslice/text/tokenizer/tokenizer_unicode.h"

namespace dynslice {
namespace {

bool stands_alone(std::string_view text, size_t begin, size_t end) {
  const bool after_word = begin > 0 && is_word(last_code_point(text.substr(0, begin)));
  const bool before_word = end < text.size() && is_word(code_point_at(text.substr(end)));
  return !after_word && !before_word;
}

size_t begin_of_spaces_before(std::string_view text, size_t at) {
  while (at > 0) {
    const uint32_t last = last_code_point(text.substr(0, at));
    if (!is_whitespace(last)) break;
    do --at;
    while ((static_cast<unsigned char>(text[at]) & 0xC0) == 0x80);
  }
  return at;
}

size_t end_of_spaces_after(std::string_view text, size_t at) {
  while (at < text.size() && is_whitespace(code_point_at(text.substr(at)))) at += utf8_length(text[at]);
  return at;
}

}  // namespace

const size_t* StringMatcher::Node::child(char byte) const {
  for (const auto& [key, node] : children) {
    if (key == byte) return &node;
  }
  return nullptr;
}

void StringMatcher::add(std::string_view pattern, size_t value) {
  if (pattern.empty()) return;
  size_t at = 0;
  for (const char byte : pattern) {
    if (const size_t* next = nodes_[at].child(byte)) {
      at = *next;
      continue;
    }
    nodes_[at].children.emplace_back(byte, nodes_.size());
    at = nodes_.size();
    nodes_.emplace_back();
  }
  nodes_[at].value = value;
}

std::optional<StringMatcher::Match> StringMatcher::longest_at(std::string_view text, size_t at) const {
  std::optional<Match> longest;
  size_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const size_t* next = nodes_[node].child(text[i]);
    if (next == nullptr) break;
    node = *next;
    if (nodes_[node].value) longest = Match{at, i + 1, *nodes_[node].value};
  }
  return longest;
}

std::optional<StringMatcher::Match> StringMatcher::find(std::string_view text, size_t from) const {
  if (empty()) return std::nullopt;
  for (size_t at = from; at < text.size(); ++at) {
    if (auto match = longest_at(text, at)) return match;
  }
  return std::nullopt;
}

AddedTokens::AddedTokens(std::vector<AddedToken> tokens, const std::function<std::string(std::string)>& normalize)
    : tokens_(std::move(tokens)), forms_(tokens_.size()) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const AddedToken& token = tokens_[i];
    forms_[i] = token.normalized && normalize ? normalize(token.content) : token.content;
    by_id_[token.id] = i;
    if (token.special) special_.insert(token.content);
  }
  for (size_t i = 0; i < tokens_.size(); ++i) {
    if (by_id_.at(tokens_[i].id) != i) continue;
    (tokens_[i].normalized ? normalized_ : raw_).add(forms_[i], i);
  }
}

std::vector<TextPart> AddedTokens::split(std::string_view text, const StringMatcher& matcher) const {
  std::vector<TextPart> parts;
  size_t done = 0;
  size_t from = 0;
  while (const auto match = matcher.find(text, from)) {
    from = match->end;
    if (match->begin < done) continue;  // lies in white space that the last one swallowed
    const AddedToken& token = tokens_[match->value];
    if (token.single_word && !stands_alone(text, match->begin, match->end)) continue;
    const size_t begin = token.lstrip ? std::max(begin_of_spaces_before(text, match->begin), done) : match->begin;
    const size_t end = token.rstrip ? end_of_spaces_after(text, match->end) : match->end;
    if (done < begin) parts.push_back({std::nullopt, text.substr(done, begin - done)});
    parts.push_back({token.id, text.substr(begin, end - begin)});
    done = end;
  }
  if (done < text.size()) parts.push_back({std::nullopt, text.substr(done)});
  return parts;
}

const std::string* AddedTokens::decoded_form(int32_t id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &forms_[found->second];
}

std::optional<int32_t> AddedTokens::id_of(std::string_view content) const {
  for (auto token = tokens_.rbegin(); token != tokens_.rend(); ++token) {
    if (token->content == content) return token->id;
  }
  return std::nullopt;
}

}  // namespace dynslice
