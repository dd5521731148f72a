// Text to token ids and back, from the tokenizer that comes with a model: tokenizer.json (BPE),
// tokenizer.model (sentencepiece) or the metadata of a GGUF file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dynslice {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // The ids of `text`, equal to those of Hugging Face `tokenizers` for the same model. With `add_special`
  // what the tokenizer's template adds (BOS, for some EOS) is added. Bytes that are not UTF-8 are replaced
  // by U+FFFD first, one for each maximal invalid sequence, as Python's decode("utf-8", "replace") does.
  [[nodiscard]] virtual std::vector<int32_t> encode(std::string_view text, bool add_special = true) const = 0;

  // The text of `ids`; special tokens are left out when `skip_special`, ids without a token always.
  [[nodiscard]] virtual std::string decode(std::span<const int32_t> ids, bool skip_special = true) const = 0;

  // One more than the largest id that `encode` can give.
  [[nodiscard]] virtual int64_t vocab_size() const = 0;
  [[nodiscard]] virtual std::optional<int32_t> bos_id() const = 0;
  [[nodiscard]] virtual std::optional<int32_t> eos_id() const = 0;
  // Whether `encode(text, true)` begins with BOS.
  [[nodiscard]] virtual bool adds_bos() const = 0;
};

// Loads the tokenizer of a checkpoint: a folder (tokenizer.json, else tokenizer.model) or a .gguf file.
// What is added around a text: the post_processor of tokenizer.json alone decides, as in `tokenizers`; with
// tokenizer.model, add_bos_token (true without) and add_eos_token of tokenizer_config.json, and `legacy` (true
// without) puts a space behind every special token; with GGUF, tokenizer.ggml.add_{bos,eos}_token, else llama.cpp's
// defaults (BOS for "llama" and for the pre-tokenizers llama-bpe and tekken).
// Throws kMissingData when there is none, kBadInput (file, key, expected, found) for one that cannot be used.
[[nodiscard]] std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& checkpoint);

// Puts the tokenizer files of `checkpoint` into `folder`: copies those of a folder (tokenizer.json,
// tokenizer.model, tokenizer_config.json, special_tokens_map.json, added_tokens.json, vocab.json, merges.txt,
// chat_template.*, generation_config.json), or writes tokenizer.json / tokenizer.model and
// tokenizer_config.json (with the chat template) from a GGUF file's metadata, so that transformers'
// AutoTokenizer gives the same ids. Returns the names of the files written.
std::vector<std::string> write_tokenizer_files(const std::filesystem::path& checkpoint,
                                               const std::filesystem::path& folder);

}  // namespace dynslice
