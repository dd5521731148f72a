#include "dynslice/generate/text_stream.h"

#include <algorithm>
#include <utility>

namespace dynslice {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // what decoders make of bytes that are no character (yet)

// A decoder may make one replacement of each of a character's bytes but the last.
constexpr size_t kMostBytes = 4;
constexpr size_t kMostPending = kMostBytes - 1;

// Tokens of context that are kept, and a number of tokens that is worth dropping some.
constexpr size_t kContext = 16;
constexpr size_t kLongWindow = 64;

// The text without the replacements at its end that the next tokens may turn into a character.
std::string_view without_pending(std::string_view text) {
  for (size_t i = 0; i < kMostPending && text.ends_with(kReplacement); ++i) text.remove_suffix(kReplacement.size());
  return text;
}

}  // namespace

TextStream::TextStream(const Tokenizer& tokenizer, std::span<const int32_t> context)
    : tokenizer_(tokenizer), window_(context.begin(), context.end()), shown_(decode_from(0)), certain_(window_.size()) {
  forget();
}

std::string TextStream::decode_from(size_t begin) const {
  return tokenizer_.decode(std::span(window_).subspan(begin), /*skip_special=*/true);
}

// Drops the oldest tokens of a long window, where that changes nothing of how the others are decoded.
void TextStream::forget() {
  if (window_.size() <= kLongWindow) return;
  const std::string whole = decode_from(0);
  const size_t open = whole.size() - std::min(shown_.size(), whole.size());
  for (size_t begin = window_.size() - kContext, tries = 0; tries < kMostBytes; --begin, ++tries) {
    const std::string rest = decode_from(begin);
    // Not within a character, and with some text in front, without which the decoder would take this for a beginning.
    if (rest.size() <= open || !whole.ends_with(rest)) continue;
    shown_ = rest.substr(0, rest.size() - open);
    window_.erase(window_.begin(), window_.begin() + static_cast<int64_t>(begin));
    certain_ -= std::min(certain_, begin);
    return;
  }
}

std::string TextStream::push(int32_t id) {
  window_.push_back(id);
  return advance(false);
}

std::string TextStream::finish() { return advance(true); }

std::string TextStream::advance(bool is_last) {
  std::string text = decode_from(0);
  const size_t pending = window_.size() - certain_;
  if (!text.starts_with(shown_)) {
    // Bytes that came after whole characters made them invalid together with themselves (byte tokens of sentencepiece
    // are judged in runs). What has been given out stays; they are looked at alone as soon as they cannot be completed.
    if (!is_last && text.ends_with(kReplacement) && pending <= kMostPending) return "";
    window_.erase(window_.begin(), window_.begin() + static_cast<int64_t>(certain_));
    certain_ = 0;
    shown_.clear();
    text = decode_from(0);
  }
  const std::string_view sure = is_last ? std::string_view(text) : without_pending(text);
  if (sure.size() < shown_.size()) return "";
  std::string piece(sure.substr(shown_.size()));
  const bool is_whole = sure.size() == text.size();
  shown_.assign(sure);
  if (is_whole) certain_ = window_.size();
  forget();
  return piece;
}

StopText::StopText(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase_if(stops_, [](const std::string& stop) { return stop.empty(); });
}

std::string StopText::push(std::string_view text) {
  if (stopped_) return "";
  held_ += text;
  size_t end = std::string::npos;
  for (const std::string& stop : stops_) end = std::min(end, held_.find(stop));
  stopped_ = end != std::string::npos;
  if (!stopped_) {
    end = held_.size();
    // The longest end of the text that is the beginning of a stop.
    for (const std::string& stop : stops_) {
      for (size_t size = std::min(stop.size() - 1, held_.size()); size > held_.size() - end; --size) {
        if (std::string_view(held_).ends_with(std::string_view(stop).substr(0, size))) end = held_.size() - size;
      }
    }
  }
  std::string sure = held_.substr(0, end);
  held_.erase(0, stopped_ ? held_.size() : end);
  return sure;
}

std::string StopText::finish() { return std::exchange(held_, {}); }

}  // namespace dynslice
