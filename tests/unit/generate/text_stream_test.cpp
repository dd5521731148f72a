#include "dynslice/generate/text_stream.h"

#include <gtest/gtest.h>

#include <random>

#include "dynslice/support/json.h"
#include "dynslice/text/tokenizer/tokenizer_unicode.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

// One token a byte, and a few longer ones: "ab", the first two bytes of an euro sign, the last of it with a letter.
std::unique_ptr<Tokenizer> byte_level_tokenizer() {
  Json vocab = Json::object();
  std::vector<std::string> characters(256);
  for (int byte = 0, next = 256; byte < 256; ++byte) {
    const bool shown = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
    append_utf8(characters[static_cast<size_t>(byte)], static_cast<uint32_t>(shown ? byte : next++));
    vocab[characters[static_cast<size_t>(byte)]] = byte;
  }
  vocab["ab"] = 256;
  vocab[characters[0xE2] + characters[0x82]] = 257;
  vocab[characters[0xAC] + "a"] = 258;
  const Json merges = {"a b", characters[0xE2] + " " + characters[0x82], characters[0xAC] + " a"};
  const Json added = {{{"id", 259},
                       {"content", "<end>"},
                       {"special", true},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false}}};
  const testing::TemporaryFolder folder;
  testing::write_bytes(
      folder / "tokenizer.json",
      Json{{"added_tokens", added},
           {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
           {"decoder", {{"type", "ByteLevel"}}},
           {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}}
          .dump());
  return load_tokenizer(folder.path());
}

// Letters as they are and bytes as <0xNN>, with a space in front of a text that decoding takes away, as Llama-2 has it.
std::unique_ptr<Tokenizer> byte_fallback_tokenizer() {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", byte);
    vocab[name] = byte;
  }
  for (const char* piece : {"\xE2\x96\x81", "a", "b", "é"}) vocab[piece] = vocab.size();
  const auto replace = [](const char* from, const char* to) {
    return Json{{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
  };
  const Json strip = {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}};
  const Json prepend = {{"type", "Prepend"}, {"prepend", "\xE2\x96\x81"}};
  const testing::TemporaryFolder folder;
  testing::write_bytes(
      folder / "tokenizer.json",
      Json{{"normalizer", {{"type", "Sequence"}, {"normalizers", {prepend, replace(" ", "\xE2\x96\x81")}}}},
           {"decoder",
            {{"type", "Sequence"},
             {"decoders", {replace("\xE2\x96\x81", " "), {{"type", "ByteFallback"}}, {{"type", "Fuse"}}, strip}}}},
           {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}, {"byte_fallback", true}}}}
          .dump());
  return load_tokenizer(folder.path());
}

std::vector<std::string> pieces_of(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                                   const std::vector<int32_t>& context = {}) {
  TextStream stream(tokenizer, context);
  std::vector<std::string> pieces;
  for (const int32_t id : ids) pieces.push_back(stream.push(id));
  pieces.push_back(stream.finish());
  for (const std::string& piece : pieces) EXPECT_TRUE(is_valid_utf8(piece));
  return pieces;
}

std::string joined(const std::vector<std::string>& pieces) {
  std::string text;
  for (const std::string& piece : pieces) text += piece;
  return text;
}

std::string random_text(std::mt19937& random, int length) {
  static const std::vector<std::string> kParts = {
      "a", "b", "ab", " ", "é", "€", "€a", "日本", "\U0001F600", "\U0001F468\u200D\U0001F469", "\n"};
  std::string text;
  for (int i = 0; i < length; ++i) text += kParts[random() % kParts.size()];
  return text;
}

TEST(TextStream, GivesWholeCharactersAsSoonAsTheyAreThere) {
  const auto tokenizer = byte_level_tokenizer();
  EXPECT_EQ(pieces_of(*tokenizer, {257, 258, 0xC3, 0xA9, 'x'}), (std::vector<std::string>{"", "€a", "", "é", "x", ""}));
}

TEST(TextStream, GivesWhatStandsBeforeABeginningOfACharacter) {
  const auto tokenizer = byte_fallback_tokenizer();
  EXPECT_EQ(pieces_of(*tokenizer, {257, 0xC3, 0xA9, 0xF0, 0x9F, 0x98, 0x80}),
            (std::vector<std::string>{"a", "", "é", "", "", "", "\U0001F600", ""}));
}

TEST(TextStream, GivesTogetherWhatDecodingGives) {
  std::mt19937 random(1);
  for (const auto& tokenizer : {byte_level_tokenizer(), byte_fallback_tokenizer()}) {
    for (int round = 0; round < 200; ++round) {
      const std::string text = random_text(random, 1 + round);
      const std::vector<int32_t> ids = tokenizer->encode(text);
      EXPECT_EQ(joined(pieces_of(*tokenizer, ids)), tokenizer->decode(ids));
      EXPECT_EQ(tokenizer->decode(ids), text);
    }
  }
}

TEST(TextStream, GoesOnFromItsContext) {
  std::mt19937 random(2);
  for (const auto& tokenizer : {byte_level_tokenizer(), byte_fallback_tokenizer()}) {
    for (int round = 0; round < 200; ++round) {
      const std::string text = random_text(random, 4 + round / 4);
      const std::vector<int32_t> ids = tokenizer->encode(text);
      for (size_t cut = 2; cut < ids.size(); cut += 3) {
        const std::vector<int32_t> before(ids.begin(), ids.begin() + static_cast<int64_t>(cut));
        const std::string context = tokenizer->decode(before);
        if (context.empty() || !text.starts_with(context)) continue;  // cut within a character
        const std::vector<int32_t> after(ids.begin() + static_cast<int64_t>(cut), ids.end());
        EXPECT_EQ(context + joined(pieces_of(*tokenizer, after, before)), text);
      }
    }
  }
}

TEST(TextStream, MakesReplacementsOfBytesThatAreNoCharacters) {
  const auto bytes = byte_level_tokenizer();
  std::mt19937 random(3);
  for (int round = 0; round < 100; ++round) {
    std::vector<int32_t> ids;
    for (int i = 0; i < 150; ++i)
      ids.push_back(static_cast<int32_t>(round % 2 == 0 ? random() % 259 : 0x80 + random() % 128));
    EXPECT_EQ(joined(pieces_of(*bytes, ids)), bytes->decode(ids));
  }
  const auto fallback = byte_fallback_tokenizer();
  EXPECT_EQ(joined(pieces_of(*fallback, {0xC3, 0xA9, 0xC3, 257})), "é\uFFFDa");
  EXPECT_EQ(joined(pieces_of(*fallback, {0xC3, 0xA9, 0xC3})), "é\uFFFD");
  for (int round = 0; round < 100; ++round) {
    std::vector<int32_t> ids;
    for (int i = 0; i < 150; ++i) ids.push_back(static_cast<int32_t>(random() % 260));
    pieces_of(*fallback, ids);  // valid UTF-8, whatever comes
  }
}

TEST(TextStream, LeavesSpecialTokensOut) {
  const auto tokenizer = byte_level_tokenizer();
  EXPECT_EQ(joined(pieces_of(*tokenizer, {'a', 259, 'b'})), "ab");
}

TEST(StopText, EndsBeforeTheFirstStop) {
  for (const size_t step : {1, 2, 3, 100}) {
    StopText stop({"", "STOP", "\n\n"});
    const std::string text = "a ST STO\nP STSTOPb\n\n";
    std::string shown;
    for (size_t at = 0; at < text.size(); at += step) shown += stop.push(text.substr(at, step));
    shown += stop.finish();
    EXPECT_TRUE(stop.is_stopped());
    EXPECT_EQ(shown, "a ST STO\nP ST");
  }
}

TEST(StopText, HoldsBackOnlyWhatMayBeginAStop) {
  StopText stop({"STOP"});
  EXPECT_EQ(stop.push("abS"), "ab");
  EXPECT_EQ(stop.push("T"), "");
  EXPECT_EQ(stop.push("x"), "STx");
  EXPECT_EQ(stop.push("ST"), "");
  EXPECT_EQ(stop.finish(), "ST");
  EXPECT_FALSE(stop.is_stopped());
}

}  // namespace
}  // namespace dynslice
