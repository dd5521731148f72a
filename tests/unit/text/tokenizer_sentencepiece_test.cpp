// Tokenizers from sentencepiece models.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "dynslice/support/files.h"
#include "dynslice/text/tokenizer/tokenizer.h"
#include "text/tokenizer/sentencepiece_proto.h"
#include "unit/text/tokenizer_fixture.h"

namespace dynslice {
namespace {

using Ids = std::vector<int32_t>;

constexpr const char* kMetaspace = "\xE2\x96\x81";

// 0 <unk>, 1 <s>, 2 </s>, 3 "▁", 4 "a", 5 "b", 6 "ab", 7 "▁a", 8 "b▁"
SentencePieceVocabulary small_vocabulary(bool with_inner_space) {
  SentencePieceVocabulary vocabulary;
  vocabulary.pieces = {
      {"<unk>", 0, PieceType::kUnknown}, {"<s>", 0, PieceType::kControl}, {"</s>", 0, PieceType::kControl}};
  float score = -1;
  for (const std::string& text : {std::string(kMetaspace), std::string("a"), std::string("b"), std::string("ab"),
                                  kMetaspace + std::string("a")}) {
    vocabulary.pieces.push_back({text, score--, PieceType::kNormal});
  }
  if (with_inner_space) vocabulary.pieces.push_back({std::string("b") + kMetaspace, 0, PieceType::kNormal});
  vocabulary.unk = 0;
  vocabulary.bos = 1;
  vocabulary.eos = 2;
  return vocabulary;
}

std::unique_ptr<Tokenizer> load(const SentencePieceVocabulary& vocabulary, const std::string& config = "") {
  const TemporaryFolder folder;
  folder.write("tokenizer.model", serialize_sentencepiece_model(vocabulary));
  if (!config.empty()) folder.write("tokenizer_config.json", config);
  return load_tokenizer(folder.path());
}

TEST(SentencePieceTokenizer, PutsASpaceBeforeTheTextAndBosBeforeThat) {
  const auto tokenizer = load(small_vocabulary(false));
  EXPECT_TRUE(tokenizer->adds_bos());
  EXPECT_EQ(tokenizer->encode("ab"), (Ids{1, 3, 6}));
  EXPECT_EQ(tokenizer->encode("ab", false), (Ids{3, 6}));
  EXPECT_EQ(tokenizer->encode(""), Ids{1});
}

TEST(SentencePieceTokenizer, FollowsTheConfig) {
  const auto tokenizer = load(small_vocabulary(false), R"({"add_bos_token": false, "add_eos_token": true})");
  EXPECT_FALSE(tokenizer->adds_bos());
  EXPECT_EQ(tokenizer->encode("b"), (Ids{3, 5, 2}));
}

TEST(SentencePieceTokenizer, PutsASpaceBehindSpecialTokensOnlyInLegacyMode) {
  EXPECT_EQ(load(small_vocabulary(false))->encode("b</s>b", false), (Ids{3, 5, 2, 3, 5}));
  EXPECT_EQ(load(small_vocabulary(false), R"({"legacy": false})")->encode("b</s>b b", false), (Ids{3, 5, 2, 5, 3, 5}));
}

TEST(SentencePieceTokenizer, FindsAddedTokensOfTheConfig) {
  const std::string config =
      R"({"added_tokens_decoder": {"9": {"content": "<x>", "lstrip": true, "special": true}, "1": {"content": "<s>", "special": true}}})";
  const auto tokenizer = load(small_vocabulary(false), config);
  EXPECT_EQ(tokenizer->encode("b <x>", false), (Ids{3, 5, 9}));
  EXPECT_EQ(tokenizer->vocab_size(), 10);
  EXPECT_EQ(tokenizer->decode(Ids{1, 3, 5, 9}), "b");
  EXPECT_EQ(tokenizer->decode(Ids{1, 3, 5, 9}, false), "<s>b<x>");
}

TEST(SentencePieceTokenizer, RefusesAddedTokensWithImpossibleIds) {
  for (const char* id : {"-1", "x", "99999999999999999999", "16777216"}) {
    const std::string config = std::string(R"({"added_tokens_decoder": {")") + id + R"(": {"content": "<x>"}}})";
    error_of(ErrorKind::kBadInput, [&] { load(small_vocabulary(false), config); });
  }
}

// Long texts are encoded in parts. With a piece that reaches over a space they must not be.
TEST(SentencePieceTokenizer, GivesLongTextsTheIdsOfTheirWords) {
  std::string text;
  Ids plain;
  for (int i = 0; i < 5000; ++i) {
    text += i == 0 ? "bab" : " bab";
    plain.insert(plain.end(), {3, 5, 6});
  }
  EXPECT_EQ(load(small_vocabulary(false))->encode(text, false), plain);
  Ids across = {3};
  for (int i = 0; i < 4999; ++i) across.insert(across.end(), {5, 4, 8});
  across.insert(across.end(), {5, 6});
  EXPECT_EQ(load(small_vocabulary(true))->encode(text, false), across);
}

TEST(SentencePieceTokenizer, SurvivesAModelCutOffAnywhere) {
  const std::string whole = serialize_sentencepiece_model(small_vocabulary(false));
  const TemporaryFolder folder;
  int refused = 0;
  for (size_t length = 0; length < whole.size(); ++length) {
    folder.write("tokenizer.model", whole.substr(0, length));
    try {
      load_tokenizer(folder.path())->encode("ab b");
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kBadInput);
      ++refused;
    }
  }
  EXPECT_GT(refused, static_cast<int>(whole.size()) / 2);
}

// A charsmap is the size of a double array, the array, and strings.
std::string model_with_charsmap(const std::vector<uint32_t>& units, const std::string& strings) {
  std::string map;
  const auto number = [&](uint32_t value) {
    for (int shift = 0; shift < 32; shift += 8) map.push_back(static_cast<char>(value >> shift));
  };
  number(static_cast<uint32_t>(units.size() * 4));
  for (const uint32_t unit : units) number(unit);
  map += strings;
  const auto field = [](int id, const std::string& content) {
    std::string bytes(1, static_cast<char>(id << 3 | 2));
    for (size_t size = content.size(); true; size >>= 7) {
      bytes.push_back(static_cast<char>(size >= 0x80 ? (size & 0x7F) | 0x80 : size));
      if (size < 0x80) break;
    }
    return bytes + content;
  };
  return field(3, field(2, map));
}

TEST(SentencePieceModel, RefusesACharacterMapThatLeadsOutOfItself) {
  const std::string end(1, '\0');
  std::vector<uint32_t> good(512, 0);
  good[0] = 256u << 10;  // the root's children lie at 256 ^ byte
  inspect_sentencepiece_model(model_with_charsmap(good, "x" + end), "FILE");
  const auto refuses = [&](const std::vector<uint32_t>& units, const std::string& strings) {
    error_of(ErrorKind::kBadInput, [&] { inspect_sentencepiece_model(model_with_charsmap(units, strings), "FILE"); });
  };
  refuses(good, "x");  // no end
  refuses(good, "");   // no strings at all
  refuses({}, "x" + end);
  std::vector<uint32_t> outside = good;
  outside[0] = 512u << 10;
  refuses(outside, "x" + end);
  std::vector<uint32_t> leaf = good;
  leaf[0] |= 1u << 8;
  leaf[256] = 1u << 31 | 2;  // a string behind the last
  refuses(leaf, "x" + end);
  leaf[256] = 1u << 31 | 1;
  inspect_sentencepiece_model(model_with_charsmap(leaf, "x" + end), "FILE");
  std::vector<uint32_t> circle = good;
  // The child "a" has the root's children, itself among them.
  circle[256 ^ 'a'] = 'a' | (static_cast<uint32_t>('a') << 10);
  refuses(circle, "x" + end);
}

TEST(SentencePieceTokenizer, TokenizesAsLlama2Does) {
  const char* data = std::getenv("DYNSLICE_DATA_DIR");
  if (data == nullptr) GTEST_SKIP() << "SKIPPED: DYNSLICE_DATA_DIR is not set";
  const auto tokenizer = load_tokenizer(std::filesystem::path(data) / "tokenizers" / "llama-2");
  EXPECT_EQ(tokenizer->vocab_size(), 32000);
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  // Known from the model's publication: these are the ids that every Llama 2 example prints.
  EXPECT_EQ(tokenizer->encode("Hello world"), (Ids{1, 15043, 3186}));
  EXPECT_EQ(tokenizer->encode("\n", false), (Ids{29871, 13}));
  const std::string text = "A  b\n\nc \xF0\x9F\x98\x80\xE4\xB8\xAD 1234";
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
}

}  // namespace
}  // namespace dynslice
