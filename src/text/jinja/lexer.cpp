#include "text/jinja/lexer.h"

#include <algorithm>

#include "dynslice/text/tokenizer/python_string.h"
#include "dynslice/text/tokenizer/tokenizer_unicode.h"
#include "text/jinja/value.h"

namespace dynslice::jinja {

using namespace python;

namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool begins_name(char c) { return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// One kind of line break, and none at the end, as jinja2 reads templates.
std::string with_plain_lines(std::string_view source) {
  std::string text;
  for (size_t i = 0; i < source.size(); ++i) {
    const bool pair = source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n';
    if (!pair) text += source[i] == '\r' ? '\n' : source[i];
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)), rest_(source_) {}

  std::vector<Token> run() {
    while (!rest_.empty()) {
      const size_t tag = next_tag();
      if (tag == std::string_view::npos) {
        add(TokenKind::kText, std::string(rest_));
        take(rest_.size());
        break;
      }
      add_text_before(tag);
      read_tag();
    }
    add(TokenKind::kEndOfTemplate, "");
    return std::move(tokens_);
  }

 private:
  size_t next_tag() const {
    size_t at = rest_.find('{');
    while (at != std::string_view::npos) {
      const char next = at + 1 < rest_.size() ? rest_[at + 1] : '\0';
      if (next == '{' || next == '%' || next == '#') return at;
      at = rest_.find('{', at + 1);
    }
    return at;
  }

  void add(TokenKind kind, std::string text) {
    if (kind != TokenKind::kText || !text.empty()) tokens_.push_back({kind, std::move(text), line_});
  }

  std::string_view take(size_t count) {
    const std::string_view taken = rest_.substr(0, count);
    line_ += static_cast<int>(std::count(taken.begin(), taken.end(), '\n'));
    if (!taken.empty()) at_line_start_ = taken.back() == '\n';
    rest_.remove_prefix(count);
    return taken;
  }

  // The text before the tag at `tag`, without the spaces that its "-" or lstrip_blocks takes.
  void add_text_before(size_t tag) {
    std::string_view text = rest_.substr(0, tag);
    const char kind = rest_[tag + 1];
    const char sign = tag + 2 < rest_.size() ? rest_[tag + 2] : '\0';
    if (sign == '-') {
      text = strip(text, nullptr, false, true);
    } else if (sign != '+' && kind != '{') {
      const size_t newline = text.rfind('\n');
      const size_t line = newline == std::string_view::npos ? 0 : newline + 1;
      if ((line > 0 || at_line_start_) && strip(text.substr(line), nullptr, true, false).empty())
        text = text.substr(0, line);
    }
    add(TokenKind::kText, std::string(text));
    take(tag);
  }

  void read_tag() {
    const char kind = rest_[1];
    const int line = line_;
    if (kind == '#') {
      const size_t begin = rest_.size() > 2 && (rest_[2] == '-' || rest_[2] == '+') ? 3 : 2;
      const size_t end = rest_.find("#}", begin);
      if (end == std::string_view::npos) fail(line, "a comment that begins here does not end");
      const char sign = end > begin ? rest_[end - 1] : '\0';
      take(end + 2);
      take_space_after(sign, true);
      return;
    }
    if (kind == '%' && read_raw()) return;
    take(2);
    if (rest_.starts_with('-') || rest_.starts_with('+')) take(1);
    add(TokenKind::kBegin, kind == '{' ? "{{" : "{%");
    const std::string close = kind == '{' ? "}}" : "%}";
    while (!read_end(close)) {
      if (rest_.empty()) fail(line, "a tag that begins here does not end");
      read_token();
    }
    brackets_ = 0;
  }

  bool read_end(const std::string& close) {
    while (!rest_.empty() && is_space(rest_[0])) take(1);
    const char sign = rest_.empty() ? '\0' : rest_[0];
    const bool signed_end = (sign == '-' || (sign == '+' && close == "%}")) && rest_.substr(1).starts_with(close);
    if (brackets_ > 0 || (!signed_end && !rest_.starts_with(close))) return false;
    add(TokenKind::kEnd, close);
    take(close.size() + (signed_end ? 1 : 0));
    take_space_after(signed_end ? sign : '\0', close == "%}");
    return true;
  }

  // What follows a tag: all white space behind "-", one line break behind a block or comment.
  void take_space_after(char sign, bool trims) {
    if (sign == '-') {
      const size_t spaces = rest_.size() - strip(rest_, nullptr, true, false).size();
      take(spaces);
    } else if (sign != '+' && trims && rest_.starts_with('\n')) {
      take(1);
    }
  }

  // {% raw %} ... {% endraw %}: text as it stands.
  bool read_raw() {
    size_t begin = 0, end = 0;
    char sign = '\0';
    if (!match_word_tag(0, "raw", begin, sign)) return false;
    const int line = line_;
    take(begin);
    if (sign == '-') take_space_after('-', false);
    for (size_t at = rest_.find("{%"); at != std::string_view::npos; at = rest_.find("{%", at + 1)) {
      if (!match_word_tag(at, "endraw", end, sign)) continue;
      add_text_before(at);
      take(end - at);
      take_space_after(sign, true);
      return true;
    }
    fail(line, "{% raw %} has no {% endraw %}");
  }

  // Whether a tag that is this word alone stands at `at`; where it ends, and the sign before its end.
  bool match_word_tag(size_t at, std::string_view word, size_t& end, char& sign) const {
    size_t i = at + 2;
    const auto skip_spaces = [&] {
      while (i < rest_.size() && is_space(rest_[i])) ++i;
    };
    if (i < rest_.size() && (rest_[i] == '-' || rest_[i] == '+')) ++i;
    skip_spaces();
    if (rest_.substr(std::min(i, rest_.size()), word.size()) != word) return false;
    i += word.size();
    skip_spaces();
    sign = i < rest_.size() && (rest_[i] == '-' || rest_[i] == '+') ? rest_[i++] : '\0';
    if (rest_.substr(std::min(i, rest_.size()), 2) != "%}") return false;
    end = i + 2;
    return true;
  }

  void read_token() {
    const char c = rest_[0];
    if (begins_name(c)) {
      size_t size = 1;
      while (size < rest_.size() && (begins_name(rest_[size]) || is_digit(rest_[size]))) ++size;
      add(TokenKind::kName, std::string(rest_.substr(0, size)));
      take(size);
    } else if (is_digit(c)) {
      read_number();
    } else if (c == '\'' || c == '"') {
      read_string();
    } else {
      read_operator();
    }
  }

  void read_number() {
    const auto digits = [&](size_t from) {
      while (from < rest_.size() && is_digit(rest_[from])) ++from;
      return from;
    };
    size_t size = digits(0);
    bool whole = true;
    if (size + 1 < rest_.size() && rest_[size] == '.' && is_digit(rest_[size + 1])) {
      size = digits(size + 1);
      whole = false;
    }
    if (size < rest_.size() && (rest_[size] == 'e' || rest_[size] == 'E')) {
      const size_t sign = size + 1 < rest_.size() && (rest_[size + 1] == '+' || rest_[size + 1] == '-') ? 1 : 0;
      if (digits(size + 1 + sign) == size + 1 + sign) fail(line_, "a number without digits behind its e");
      size = digits(size + 1 + sign);
      whole = false;
    }
    if (size < rest_.size() && begins_name(rest_[size])) fail(line_, "letters that follow a number");
    add(whole ? TokenKind::kInteger : TokenKind::kFloat, std::string(rest_.substr(0, size)));
    take(size);
  }

  void read_string() {
    const char quote = rest_[0];
    const int line = line_;
    take(1);
    std::string text;
    while (!rest_.starts_with(quote)) {
      if (rest_.empty()) fail(line, "a string that begins here does not end");
      if (rest_[0] == '\\') {
        text += read_escape();
      } else {
        text += take(1);
      }
    }
    take(1);
    tokens_.push_back({TokenKind::kString, std::move(text), line});
  }

  std::string read_escape() {
    if (rest_.size() < 2) fail(line_, "a string that does not end");
    const char c = rest_[1];
    static constexpr std::string_view kCodes = "ntr\\'\"abfv0", kValues = std::string_view("\n\t\r\\'\"\a\b\f\v\0", 11);
    const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits > 0) {
      const std::string_view code = rest_.substr(2, digits);
      if (code.size() < digits || code.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) {
        fail(line_, "\\", c, " must be followed by ", digits, " hexadecimal digits");
      }
      const unsigned long value = std::stoul(std::string(code), nullptr, 16);
      if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) fail(line_, "\\", c, code, " is no character");
      take(2 + digits);
      std::string character;
      append_utf8(character, static_cast<uint32_t>(value));
      return character;
    }
    if (const size_t code = kCodes.find(c); code != std::string_view::npos) {
      take(2);
      return std::string(1, kValues[code]);
    }
    take(1);
    if (c == '\n') take(1);  // a line that goes on
    return c == '\n' ? "" : "\\";
  }

  void read_operator() {
    static constexpr std::string_view kTwo[] = {"==", "!=", ">=", "<=", "//", "**"};
    static constexpr std::string_view kOne = "+-/*%~[](){}><=.:|,";
    size_t size = std::find(std::begin(kTwo), std::end(kTwo), rest_.substr(0, 2)) != std::end(kTwo) ? 2 : 1;
    if (size == 1 && kOne.find(rest_[0]) == std::string_view::npos) {
      fail(line_, "\"", rest_.substr(0, std::min(utf8_length(rest_[0]), rest_.size())), "\" cannot stand in a tag");
    }
    if (rest_[0] == '(' || rest_[0] == '[' || rest_[0] == '{') ++brackets_;
    if ((rest_[0] == ')' || rest_[0] == ']' || rest_[0] == '}') && --brackets_ < 0) {
      fail(line_, "\"", rest_[0], "\" closes nothing");
    }
    add(TokenKind::kOperator, std::string(rest_.substr(0, size)));
    take(size);
  }

  std::string source_;
  std::string_view rest_;
  int line_ = 1;
  bool at_line_start_ = true;
  int brackets_ = 0;  // open in the tag that is read: its end cannot stand inside of them
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> cut_template(std::string_view source) { return Lexer(with_plain_lines(source)).run(); }

}  // namespace dynslice::jinja
