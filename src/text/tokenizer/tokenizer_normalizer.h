// Normalizers: what is done to a text before it is cut into words.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "dynslice/text/tokenizer/tokenizer_unicode.h"
#include "text/tokenizer/tokenizer_regex.h"

namespace dynslice {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual std::string apply(std::string text) const = 0;
};

std::unique_ptr<Normalizer> make_unicode_normalizer(NormalForm form);
// Puts `prefix` before every text that is not empty.
std::unique_ptr<Normalizer> make_prepend_normalizer(std::string prefix);
std::unique_ptr<Normalizer> make_replace_normalizer(std::string pattern, std::string content);
std::unique_ptr<Normalizer> make_regex_replace_normalizer(TokenizerRegex pattern, std::string content);
std::unique_ptr<Normalizer> make_normalizer_sequence(std::vector<std::unique_ptr<Normalizer>> parts);

// `text` with every `pattern` (not empty) replaced by `content`.
std::string replace_all(std::string_view text, std::string_view pattern, std::string_view content);
std::string replace_all(std::string_view text, const TokenizerRegex& pattern, std::string_view content);

}  // namespace dynslice
