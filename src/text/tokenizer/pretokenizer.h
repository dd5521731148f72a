// Pre-tokenizers: cut a text into the words that BPE works on, and write their bytes or spaces as it expects.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer/tokenizer_regex.h"

namespace dynslice {

// Words that lie one behind the other in one string. None is empty.
struct Words {
  std::string text;
  std::vector<size_t> ends;
  bool at_text_start = false;  // the first word begins where the input begins

  void add(std::string_view word) {
    if (word.empty()) return;
    text.append(word);
    ends.push_back(text.size());
  }
  template <typename Visit>
  void for_each(Visit visit) const {
    size_t begin = 0;
    for (const size_t end : ends) {
      visit(std::string_view(text).substr(begin, end - begin));
      begin = end;
    }
  }
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void apply(Words& words) const = 0;
};

// What happens to the parts that match a pattern.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

enum class PrependScheme { kAlways, kFirst, kNever };

std::unique_ptr<PreTokenizer> make_split_on_regex(TokenizerRegex regex, SplitBehavior behavior, bool invert);
std::unique_ptr<PreTokenizer> make_split_on_string(std::string pattern, SplitBehavior behavior, bool invert);
std::unique_ptr<PreTokenizer> make_digits(bool individual);
// Bytes become the printable characters of GPT-2's table; with `use_regex` words are cut as GPT-2 cuts them.
std::unique_ptr<PreTokenizer> make_byte_level(bool add_prefix_space, bool use_regex);
std::unique_ptr<PreTokenizer> make_metaspace(std::string replacement, PrependScheme scheme, bool split);
std::unique_ptr<PreTokenizer> make_sequence(std::vector<std::unique_ptr<PreTokenizer>> parts);

// The character that stands for `byte` in byte-level vocabularies, as UTF-8, and back (-1: stands for none).
std::string_view byte_level_character(unsigned char byte);
int byte_of_byte_level_character(uint32_t code_point);

}  // namespace dynslice
