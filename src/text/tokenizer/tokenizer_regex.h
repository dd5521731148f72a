// Regular expressions as tokenizer.json means them (Oniguruma, Ruby syntax), run by PCRE2.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace dynslice {

// Where Oniguruma and PCRE2 read a pattern differently it is rewritten: \s, \S, \w, \W, \h and \H get
// Oniguruma's meaning, `x{n,m}+` repeats (PCRE2 would make it possessive), ^ and $ match at line ends.
// Nested character sets and && are refused. What counts as a letter or a digit is Unicode 14's word (PCRE2 10.42);
// for the characters that later versions added a newer Oniguruma may cut elsewhere.
std::string oniguruma_to_pcre2(std::string_view pattern, const std::string& where);

class TokenizerRegex {
 public:
  // Throws kBadInput beginning with `where` (file and key) when the pattern does not compile.
  TokenizerRegex(const std::string& pattern, const std::string& where);
  ~TokenizerRegex();
  TokenizerRegex(TokenizerRegex&&) noexcept;
  TokenizerRegex& operator=(TokenizerRegex&&) noexcept;

  // The working memory of matches. Make one for a run of searches; a regex may serve several at once.
  class Matcher {
   public:
    explicit Matcher(const TokenizerRegex& regex);
    ~Matcher();
    Matcher(const Matcher&) = delete;
    Matcher& operator=(const Matcher&) = delete;

    // Calls visit(begin, end) for each match in `text` (valid UTF-8) from left to right; an empty match
    // directly after a match is skipped. Throws kBadInput when a limit of the engine is reached.
    void for_each(std::string_view text, const std::function<void(size_t, size_t)>& visit);

   private:
    bool search(std::string_view text, size_t from, size_t& begin, size_t& end);

    struct Memory;
    const TokenizerRegex& regex_;
    std::unique_ptr<Memory> memory_;
  };

 private:
  struct Code;
  std::string pattern_;
  std::string where_;
  std::unique_ptr<Code> code_;
};

}  // namespace dynslice
