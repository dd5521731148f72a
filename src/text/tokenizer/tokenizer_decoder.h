// Decoders: tokens back to text.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "text/tokenizer/pretokenizer.h"
#include "text/tokenizer/tokenizer_regex.h"

namespace dynslice {

// Changes the list of tokens; the text is what remains, joined.
class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual std::vector<std::string> apply(std::vector<std::string> tokens) const = 0;
};

std::unique_ptr<Decoder> make_byte_level_decoder();
std::unique_ptr<Decoder> make_metaspace_decoder(std::string replacement, PrependScheme scheme);
std::unique_ptr<Decoder> make_replace_decoder(std::string pattern, std::string content);
std::unique_ptr<Decoder> make_regex_replace_decoder(TokenizerRegex pattern, std::string content);
// <0xNN> tokens become text; a run of them that is no UTF-8 becomes one U+FFFD for each.
std::unique_ptr<Decoder> make_byte_fallback_decoder();
std::unique_ptr<Decoder> make_fuse_decoder();
// Takes up to `start` and `stop` characters `content` off the ends of each token.
std::unique_ptr<Decoder> make_strip_decoder(std::string content, size_t start, size_t stop);
std::unique_ptr<Decoder> make_decoder_sequence(std::vector<std::unique_ptr<Decoder>> parts);

// The byte that a token "<0xNN>" stands for.
std::optional<char> byte_of_fallback_token(std::string_view token);

}  // namespace dynslice
