#include "text/tokenizer/tokenizer_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <vector>

#include "dynslice/support/error.h"
#include "dynslice/text/tokenizer/tokenizer_unicode.h"

namespace dynslice {
namespace {

// PCRE2's \s holds U+180E, which has not been White_Space since Unicode 6.3.
constexpr std::string_view kSpaces =
    "\\t-\\r\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";
constexpr std::string_view kNotSpaces =
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}"
    "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}";
// Oniguruma has a table of its own below U+0100, in which superscripts and fractions are word characters.
constexpr std::string_view kWords = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}";
constexpr std::string_view kHexDigits = "0-9A-Fa-f";

// Walks the pattern once and copies it, with the escapes and repeats that differ rewritten.
class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where) : pattern_(pattern), where_(where) {}

  std::string run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\') {
        atom_ = out_.size();
        escape(false);
      } else if (c == '[') {
        atom_ = out_.size();
        character_set();
      } else if (c == '(') {
        groups_.push_back(out_.size());
        copy();
        if (at_ < pattern_.size() && pattern_[at_] == '?') copy();  // of (?i: and (?!, not a repeat
      } else if (c == ')') {
        if (!groups_.empty()) {
          atom_ = groups_.back();
          groups_.pop_back();
        }
        copy();
      } else if (c == '{') {
        counted_repeat();
      } else {
        if (c != '*' && c != '+' && c != '?') atom_ = out_.size();
        copy();
      }
    }
    return std::move(out_);
  }

 private:
  void copy() {
    const size_t length = std::min(utf8_length(pattern_[at_]), pattern_.size() - at_);
    out_.append(pattern_.substr(at_, length));
    at_ += length;
  }

  void escape(bool in_set) {
    if (at_ + 1 >= pattern_.size()) return copy();
    const auto put = [&](std::string_view positive, bool negated) {
      out_.append(in_set ? "" : negated ? "[^" : "[").append(positive).append(in_set ? "" : "]");
      at_ += 2;
    };
    switch (pattern_[at_ + 1]) {
      case 's':
        return put(kSpaces, false);
      case 'S':
        return in_set ? put(kNotSpaces, false) : put(kSpaces, true);
      case 'w':
        return put(kWords, false);
      case 'h':
        return put(kHexDigits, false);
      case 'W':
      case 'H':
        if (in_set) refuse("\\W or \\H inside of [...]");
        return put(pattern_[at_ + 1] == 'W' ? kWords : kHexDigits, true);
      default: {
        const bool takes_braces = std::string_view("pPxkgou").find(pattern_[at_ + 1]) != std::string_view::npos;
        copy();
        copy();
        if (!in_set && takes_braces && at_ < pattern_.size() && pattern_[at_] == '{') copy_braces();  // \p{L}
      }
    }
  }

  void copy_braces() {
    const size_t close = pattern_.find('}', at_);
    const size_t end = close == std::string_view::npos ? pattern_.size() : close + 1;
    while (at_ < end) copy();
  }

  void character_set() {
    copy();
    if (at_ < pattern_.size() && pattern_[at_] == '^') copy();
    if (at_ < pattern_.size() && pattern_[at_] == ']') copy();  // a leading ] stands for itself
    while (at_ < pattern_.size() && pattern_[at_] != ']') {
      const std::string_view rest = pattern_.substr(at_);
      if (rest.starts_with("[:") && rest.find(":]") != std::string_view::npos) {
        const size_t end = at_ + rest.find(":]") + 2;
        while (at_ < end) copy();
      } else if (rest.starts_with('[') || rest.starts_with("&&")) {
        refuse("a set inside of [...] or &&");
      } else if (rest.starts_with('\\')) {
        escape(true);
      } else {
        copy();
      }
    }
    if (at_ < pattern_.size()) copy();
  }

  // In Ruby's syntax x{n,m}+ is (?:x{n,m})+.
  void counted_repeat() {
    copy_braces();
    if (at_ < pattern_.size() && pattern_[at_] == '+') {
      out_.insert(atom_, "(?:");
      out_.append(")");
    }
  }

  [[noreturn]] void refuse(std::string_view what) const {
    throw_error(ErrorKind::kBadInput, where_, ": the regular expression uses ", what, " at byte ", at_,
                ", which is not supported; write it as one plain set");
  }

  std::string_view pattern_;
  const std::string& where_;
  std::string out_;
  size_t at_ = 0;
  size_t atom_ = 0;             // where in out_ the last atom, which a repeat would repeat, begins
  std::vector<size_t> groups_;  // where in out_ the open groups begin
};

std::string pcre2_message(int code) {
  std::array<PCRE2_UCHAR, 128> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

}  // namespace

std::string oniguruma_to_pcre2(std::string_view pattern, const std::string& where) {
  return Translator(pattern, where).run();
}

struct TokenizerRegex::Code {
  explicit Code(pcre2_code* c) : compiled(c, &pcre2_code_free) {}
  std::unique_ptr<pcre2_code, decltype(&pcre2_code_free)> compiled;
};

TokenizerRegex::TokenizerRegex(const std::string& pattern, const std::string& where)
    : pattern_(pattern), where_(where) {
  if (!is_valid_utf8(pattern)) throw_error(ErrorKind::kBadInput, where, ": the regular expression is not UTF-8");
  const std::string translated = oniguruma_to_pcre2(pattern, where);
  int code = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* compiled =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code, &offset, nullptr);
  if (compiled == nullptr) {
    throw_error(ErrorKind::kBadInput, where, ": the regular expression does not compile (", pcre2_message(code),
                "; near byte ", std::min<size_t>(offset, pattern.size()), ")");
  }
  code_ = std::make_unique<Code>(compiled);
  // Where the system allows no JIT the interpreter serves: slower, same matches.
  pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);
}

TokenizerRegex::~TokenizerRegex() = default;
TokenizerRegex::TokenizerRegex(TokenizerRegex&&) noexcept = default;
TokenizerRegex& TokenizerRegex::operator=(TokenizerRegex&&) noexcept = default;

struct TokenizerRegex::Matcher::Memory {
  explicit Memory(const pcre2_code* code)
      : match(pcre2_match_data_create_from_pattern(code, nullptr), &pcre2_match_data_free),
        context(pcre2_match_context_create(nullptr), &pcre2_match_context_free),
        stack(pcre2_jit_stack_create(size_t{32} << 10, size_t{16} << 20, nullptr), &pcre2_jit_stack_free) {
    if (match == nullptr || context == nullptr)
      throw_error(ErrorKind::kOutOfResources, "out of memory for a regular expression");
    if (stack != nullptr) pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  }
  std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match;
  std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> context;
  std::unique_ptr<pcre2_jit_stack, decltype(&pcre2_jit_stack_free)> stack;
};

TokenizerRegex::Matcher::Matcher(const TokenizerRegex& regex)
    : regex_(regex), memory_(std::make_unique<Memory>(regex.code_->compiled.get())) {}
TokenizerRegex::Matcher::~Matcher() = default;

bool TokenizerRegex::Matcher::search(std::string_view text, size_t from, size_t& begin, size_t& end) {
  const int found = pcre2_match(regex_.code_->compiled.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                from, PCRE2_NO_UTF_CHECK, memory_->match.get(), memory_->context.get());
  if (found == PCRE2_ERROR_NOMATCH) return false;
  if (found < 0) {
    throw_error(ErrorKind::kBadInput, regex_.where_, ": the regular expression cannot be matched (",
                pcre2_message(found), ") in a text of ", text.size(), " bytes, from byte ", from);
  }
  const PCRE2_SIZE* span = pcre2_get_ovector_pointer(memory_->match.get());
  begin = span[0];
  end = span[1];
  // \K in a lookahead can move the start beyond the end.
  if (begin > end || begin < from) {
    throw_error(ErrorKind::kBadInput, regex_.where_, ": the regular expression matches backwards");
  }
  return true;
}

void TokenizerRegex::Matcher::for_each(std::string_view text, const std::function<void(size_t, size_t)>& visit) {
  size_t from = 0;
  size_t last_end = std::string_view::npos;
  size_t begin = 0;
  size_t end = 0;
  while (from <= text.size() && search(text, from, begin, end)) {
    if (begin == end && end == last_end) {
      from = end < text.size() ? end + utf8_length(text[end]) : text.size() + 1;
      last_end = std::string_view::npos;
      continue;
    }
    visit(begin, end);
    from = last_end = end;
  }
}

}  // namespace dynslice
