#include "text/tokenizer/pretokenizer.h"

#include <array>
#include <cstdint>
#include <functional>

#include "dynslice/text/tokenizer/tokenizer_unicode.h"

namespace dynslice {
namespace {

constexpr const char* kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// A part of a word and whether it matched the pattern. The parts of a word cover it.
struct Part {
  size_t begin;
  size_t end;
  bool match;
};

// Adds matches from left to right, and what lies between them.
class Parts {
 public:
  void start() {
    parts_.clear();
    last_ = 0;
  }
  void add_match(size_t begin, size_t end) {
    if (last_ != begin) parts_.push_back({last_, begin, false});
    parts_.push_back({begin, end, true});
    last_ = end;
  }
  void finish(size_t size) {
    if (last_ != size) parts_.push_back({last_, size, false});
  }
  void invert() {
    for (Part& part : parts_) part.match = !part.match;
  }
  const std::vector<Part>& get() const { return parts_; }

 private:
  std::vector<Part> parts_;
  size_t last_ = 0;
};

void add_merged_with_previous(Words& out, std::string_view word, const std::vector<Part>& parts) {
  bool previous_match = false;
  size_t begin = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const bool joins = parts[i].match && !previous_match && i > 0;
    if (!joins && i > 0) {
      out.add(word.substr(begin, parts[i].begin - begin));
      begin = parts[i].begin;
    }
    previous_match = parts[i].match;
  }
  out.add(word.substr(begin));
}

void add_merged_with_next(Words& out, std::string_view word, const std::vector<Part>& parts) {
  size_t begin = 0;
  for (size_t i = 0; i + 1 < parts.size(); ++i) {
    // A match joins what follows it, unless that is a match itself.
    if (parts[i].match && !parts[i + 1].match) continue;
    out.add(word.substr(begin, parts[i].end - begin));
    begin = parts[i].end;
  }
  out.add(word.substr(begin));
}

void add_contiguous(Words& out, std::string_view word, const std::vector<Part>& parts) {
  size_t begin = 0;
  for (size_t i = 1; i < parts.size(); ++i) {
    if (parts[i].match == parts[i - 1].match) continue;
    out.add(word.substr(begin, parts[i].begin - begin));
    begin = parts[i].begin;
  }
  out.add(word.substr(begin));
}

void add_parts(Words& out, std::string_view word, const std::vector<Part>& parts, SplitBehavior behavior) {
  switch (behavior) {
    case SplitBehavior::kIsolated:
    case SplitBehavior::kRemoved:
      for (const Part& part : parts) {
        if (behavior == SplitBehavior::kIsolated || !part.match)
          out.add(word.substr(part.begin, part.end - part.begin));
      }
      return;
    case SplitBehavior::kMergedWithPrevious:
      return add_merged_with_previous(out, word, parts);
    case SplitBehavior::kMergedWithNext:
      return add_merged_with_next(out, word, parts);
    case SplitBehavior::kContiguous:
      return add_contiguous(out, word, parts);
  }
}

Words empty_like(const Words& words) {
  Words out;
  out.text.reserve(words.text.size());
  out.ends.reserve(words.ends.size());
  out.at_text_start = words.at_text_start;
  return out;
}

// Cuts every word where `find` (word, parts) says.
template <typename Find>
void split_words(Words& words, SplitBehavior behavior, bool invert, Find find) {
  Words out = empty_like(words);
  Parts parts;
  words.for_each([&](std::string_view word) {
    parts.start();
    find(word, parts);
    parts.finish(word.size());
    if (invert) parts.invert();
    add_parts(out, word, parts.get(), behavior);
  });
  words = std::move(out);
}

void split_on_regex(Words& words, const TokenizerRegex& regex, SplitBehavior behavior, bool invert) {
  TokenizerRegex::Matcher matcher(regex);
  split_words(words, behavior, invert, [&](std::string_view word, Parts& parts) {
    matcher.for_each(word, [&](size_t begin, size_t end) { parts.add_match(begin, end); });
  });
}

void split_on_string(Words& words, std::string_view pattern, SplitBehavior behavior, bool invert) {
  split_words(words, behavior, invert, [&](std::string_view word, Parts& parts) {
    if (pattern.empty()) return;
    for (size_t at = word.find(pattern); at != std::string_view::npos; at = word.find(pattern, at + pattern.size())) {
      parts.add_match(at, at + pattern.size());
    }
  });
}

class RegexSplit : public PreTokenizer {
 public:
  RegexSplit(TokenizerRegex regex, SplitBehavior behavior, bool invert)
      : regex_(std::move(regex)), behavior_(behavior), invert_(invert) {}
  void apply(Words& words) const override { split_on_regex(words, regex_, behavior_, invert_); }

 private:
  TokenizerRegex regex_;
  SplitBehavior behavior_;
  bool invert_;
};

class StringSplit : public PreTokenizer {
 public:
  StringSplit(std::string pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}
  void apply(Words& words) const override { split_on_string(words, pattern_, behavior_, invert_); }

 private:
  std::string pattern_;
  SplitBehavior behavior_;
  bool invert_;
};

class Digits : public PreTokenizer {
 public:
  explicit Digits(bool individual) : behavior_(individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous) {}
  void apply(Words& words) const override {
    split_words(words, behavior_, false, [](std::string_view word, Parts& parts) {
      for (size_t at = 0; at < word.size();) {
        const size_t length = utf8_length(word[at]);
        if (is_numeric(code_point_at(word.substr(at)))) parts.add_match(at, at + length);
        at += length;
      }
    });
  }

 private:
  SplitBehavior behavior_;
};

// GPT-2's table: printable bytes stand for themselves, the others for U+0100 and up, in order.
struct ByteTable {
  std::array<std::string, 256> characters;
  std::array<int, 0x200> bytes{};

  ByteTable() {
    bytes.fill(-1);
    uint32_t next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      const uint32_t code_point = printable ? byte : next++;
      append_utf8(characters[byte], code_point);
      bytes[code_point] = static_cast<int>(byte);
    }
  }
};

const ByteTable& byte_table() {
  static const ByteTable table;
  return table;
}

// Puts `prefix` before every word that does not begin with it; with `first_only` before the input's first alone.
void prepend(Words& words, std::string_view prefix, bool first_only) {
  if (first_only && !words.at_text_start) return;
  Words out = empty_like(words);
  bool first = true;
  words.for_each([&](std::string_view word) {
    if ((first || !first_only) && !word.starts_with(prefix)) out.text.append(prefix);
    out.add(word);
    first = false;
  });
  words = std::move(out);
}

class ByteLevel : public PreTokenizer {
 public:
  ByteLevel(bool add_prefix_space, bool use_regex) : add_prefix_space_(add_prefix_space), use_regex_(use_regex) {}

  void apply(Words& words) const override {
    if (add_prefix_space_) prepend(words, " ", false);
    if (use_regex_) split_on_regex(words, regex_, SplitBehavior::kIsolated, false);
    Words out = empty_like(words);
    words.for_each([&](std::string_view word) {
      for (const char byte : word) out.text.append(byte_level_character(static_cast<unsigned char>(byte)));
      out.ends.push_back(out.text.size());
    });
    words = std::move(out);
  }

 private:
  bool add_prefix_space_;
  bool use_regex_;
  TokenizerRegex regex_{kGpt2Pattern, "ByteLevel"};
};

class Metaspace : public PreTokenizer {
 public:
  Metaspace(std::string replacement, PrependScheme scheme, bool split)
      : replacement_(std::move(replacement)), scheme_(scheme), split_(split) {}

  void apply(Words& words) const override {
    Words out = empty_like(words);
    words.for_each([&](std::string_view word) {
      for (const char c : word) {
        if (c == ' ') {
          out.text.append(replacement_);
        } else {
          out.text.push_back(c);
        }
      }
      out.ends.push_back(out.text.size());
    });
    words = std::move(out);
    if (scheme_ != PrependScheme::kNever) prepend(words, replacement_, scheme_ == PrependScheme::kFirst);
    if (split_) split_on_string(words, replacement_, SplitBehavior::kMergedWithNext, false);
  }

 private:
  std::string replacement_;
  PrependScheme scheme_;
  bool split_;
};

class Sequence : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> parts) : parts_(std::move(parts)) {}
  void apply(Words& words) const override {
    for (const auto& part : parts_) part->apply(words);
  }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> parts_;
};

}  // namespace

std::unique_ptr<PreTokenizer> make_split_on_regex(TokenizerRegex regex, SplitBehavior behavior, bool invert) {
  return std::make_unique<RegexSplit>(std::move(regex), behavior, invert);
}

std::unique_ptr<PreTokenizer> make_split_on_string(std::string pattern, SplitBehavior behavior, bool invert) {
  return std::make_unique<StringSplit>(std::move(pattern), behavior, invert);
}

std::unique_ptr<PreTokenizer> make_digits(bool individual) { return std::make_unique<Digits>(individual); }

std::unique_ptr<PreTokenizer> make_byte_level(bool add_prefix_space, bool use_regex) {
  return std::make_unique<ByteLevel>(add_prefix_space, use_regex);
}

std::unique_ptr<PreTokenizer> make_metaspace(std::string replacement, PrependScheme scheme, bool split) {
  return std::make_unique<Metaspace>(std::move(replacement), scheme, split);
}

std::unique_ptr<PreTokenizer> make_sequence(std::vector<std::unique_ptr<PreTokenizer>> parts) {
  return std::make_unique<Sequence>(std::move(parts));
}

std::string_view byte_level_character(unsigned char byte) { return byte_table().characters[byte]; }

int byte_of_byte_level_character(uint32_t code_point) {
  const auto& bytes = byte_table().bytes;
  return code_point < bytes.size() ? bytes[code_point] : -1;
}

}  // namespace dynslice
