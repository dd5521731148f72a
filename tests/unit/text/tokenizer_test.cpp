// Tokenizers from tokenizer.json: each form that the supported families have.
#include "dynslice/text/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "text/tokenizer/pretokenizer.h"
#include "unit/text/tokenizer_fixture.h"

namespace dynslice {
namespace {

using Ids = std::vector<int32_t>;
using ::testing::HasSubstr;

// Byte-level: the 256 byte characters have the ids of their bytes, merges make 256 and up.
Json byte_level_tokenizer(const std::vector<std::string>& merges) {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte)
    vocab[std::string(byte_level_character(static_cast<unsigned char>(byte)))] = byte;
  Json list = Json::array();
  for (const std::string& merge : merges) {
    const size_t space = merge.find(' ');
    vocab[merge.substr(0, space) + merge.substr(space + 1)] = vocab.size();
    list.push_back(merge);
  }
  return {{"version", "1.0"},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", list}}},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
          {"decoder", {{"type", "ByteLevel"}}}};
}

// Metaspace with byte fallback, as Llama has it: ids 0 to 2 are special, bytes follow, then the characters.
Json metaspace_tokenizer() {
  Json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  for (unsigned byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", byte);
    vocab[name] = 3 + byte;
  }
  for (const char* token : {"▁", "h", "i", "o", "▁▁", "hi", "▁hi"}) vocab[token] = vocab.size();
  Json tokens = Json::array();
  for (int id = 0; id < 3; ++id) {
    const char* names[] = {"<unk>", "<s>", "</s>"};
    tokens.push_back({{"id", id}, {"content", names[id]}, {"special", true}, {"normalized", false}});
  }
  return {{"added_tokens", tokens},
          {"normalizer",
           {{"type", "Sequence"},
            {"normalizers",
             {{{"type", "Prepend"}, {"prepend", "▁"}},
              {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}}}}}},
          {"pre_tokenizer", nullptr},
          {"post_processor",
           {{"type", "TemplateProcessing"},
            {"single",
             {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
            {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {1}}, {"tokens", {"<s>"}}}}}}}},
          {"decoder",
           {{"type", "Sequence"},
            {"decoders",
             {{{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}},
              {{"type", "ByteFallback"}},
              {{"type", "Fuse"}},
              {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
          {"model",
           {{"type", "BPE"},
            {"unk_token", "<unk>"},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"vocab", vocab},
            {"merges", Json::array({Json::array({"▁", "▁"}), Json::array({"h", "i"}), Json::array({"▁", "hi"})})}}}};
}

std::unique_ptr<Tokenizer> load(const Json& json, const std::string& config = "") {
  const TemporaryFolder folder;
  folder.write("tokenizer.json", json.dump());
  if (!config.empty()) folder.write("tokenizer_config.json", config);
  return load_tokenizer(folder.path());
}

std::string load_error(const Json& json) {
  return error_of(ErrorKind::kBadInput, [&] { load(json); });
}

Json added_token(const std::string& content, int id, const Json& more = Json::object()) {
  Json token = {{"id", id}, {"content", content}, {"special", false}, {"normalized", false}};
  token.update(more);
  return token;
}

TEST(Tokenizer, CutsWordsAsGpt2Does) {
  const auto tokenizer = load(byte_level_tokenizer({"i n", "Ġ in", "Ġ Ġ"}));
  EXPECT_EQ(tokenizer->encode("in in"), (Ids{256, 257}));
  EXPECT_EQ(tokenizer->encode("   in"), (Ids{258, 257}));  // the last space belongs to the word
  EXPECT_EQ(tokenizer->encode(""), Ids{});
  EXPECT_EQ(tokenizer->vocab_size(), 259);
}

TEST(Tokenizer, KeepsRunsOfSpacesTogether) {
  const auto tokenizer = load(byte_level_tokenizer({"Ġ Ġ", "ĠĠ ĠĠ", "Ċ Ċ"}));
  EXPECT_EQ(tokenizer->encode("    "), Ids{257});
  EXPECT_EQ(tokenizer->encode("x\n\n"), (Ids{'x', 258}));
}

TEST(Tokenizer, ReplacesInvalidBytesBeforeItDoesAnythingElse) {
  const auto tokenizer = load(byte_level_tokenizer({}));
  EXPECT_EQ(tokenizer->encode("a\xFF\xE2\x82z"), (Ids{'a', 0xEF, 0xBF, 0xBD, 0xEF, 0xBF, 0xBD, 'z'}));
}

TEST(Tokenizer, GivesBackEveryTextThatIsValid) {
  const auto tokenizer = load(byte_level_tokenizer({"i n", "Ġ in", "Ã ©"}));
  const std::string text = std::string("in  caf\xC3\xA9\0\r\n\t \0", 15) + "\xF0\x9F\x98\x80 12'34 \xE2\x96\x81";
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
}

TEST(Tokenizer, DecodesHalfACharacterAsAReplacementCharacter) {
  const auto tokenizer = load(byte_level_tokenizer({}));
  EXPECT_EQ(tokenizer->decode(Ids{'a', 0xC3, 'b'}),
            "a\xEF\xBF\xBD"
            "b");
  EXPECT_EQ(tokenizer->decode(Ids{'a', -1, 100000, 'b'}), "ab");  // ids without a token are left out
}

TEST(Tokenizer, SplitsByThePatternOfTheFile) {
  Json json = byte_level_tokenizer({"1 2", "12 3", "3 4"});
  json["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"}, {"pattern", {{"Regex", "\\p{N}{1,3}"}}}, {"behavior", "Isolated"}, {"invert", false}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  EXPECT_EQ(load(json)->encode("1234"), (Ids{257, '4'}));
  json["pre_tokenizer"]["pretokenizers"][0] = {{"type", "Digits"}, {"individual_digits", true}};
  EXPECT_EQ(load(json)->encode("1234"), (Ids{'1', '2', '3', '4'}));
  json["pre_tokenizer"]["pretokenizers"][0] = {{"type", "Digits"}, {"individual_digits", false}};
  EXPECT_EQ(load(json)->encode("1234"), (Ids{257, '4'}));
}

TEST(Tokenizer, TreatsMatchesAsTheBehaviourSays) {
  const std::pair<const char*, Ids> cases[] = {{"Removed", {'a', 'b'}},
                                               {"Isolated", {'a', '-', '-', 'b'}},
                                               {"Contiguous", {'a', 256, 'b'}},
                                               {"MergedWithPrevious", {257, '-', 'b'}},
                                               {"MergedWithNext", {'a', '-', 258}}};
  for (const auto& [behavior, expected] : cases) {
    Json json = byte_level_tokenizer({"- -", "a -", "- b"});
    json["pre_tokenizer"] = {
        {"type", "Split"}, {"pattern", {{"String", "-"}}}, {"behavior", behavior}, {"invert", false}};
    EXPECT_EQ(load(json)->encode("a--b"), expected) << behavior;
  }
}

TEST(Tokenizer, NormalizesBeforeItCuts) {
  Json json = byte_level_tokenizer({"Ã ©"});
  EXPECT_EQ(load(json)->encode("e\xCC\x81"), (Ids{'e', 0xCC, 0x81}));
  json["normalizer"] = {{"type", "NFC"}};
  EXPECT_EQ(load(json)->encode("e\xCC\x81"), Ids{256});
}

TEST(Tokenizer, FindsTheLongestAddedTokenAndSwallowsSpacesOnRequest) {
  Json json = byte_level_tokenizer({});
  json["added_tokens"] = {added_token("<a>", 256), added_token("<a><b>", 257),
                          added_token("<c>", 258, {{"lstrip", true}, {"rstrip", true}}),
                          added_token("word", 259, {{"single_word", true}})};
  const auto tokenizer = load(json);
  EXPECT_EQ(tokenizer->encode("<a><b><a>"), (Ids{257, 256}));
  EXPECT_EQ(tokenizer->encode("x \n<c>  y"), (Ids{'x', 258, 'y'}));
  EXPECT_EQ(tokenizer->encode("a word"), (Ids{'a', ' ', 259}));
  EXPECT_EQ(tokenizer->encode("sword").size(), 5u);
  EXPECT_EQ(tokenizer->vocab_size(), 260);
}

TEST(Tokenizer, FindsNormalizedAddedTokensInNormalizedTextOnly) {
  Json json = byte_level_tokenizer({});
  json["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", "x"}}}, {"content", "y"}};
  json["added_tokens"] = {added_token("ax", 256, {{"normalized", true}}), added_token("bx", 257)};
  const auto tokenizer = load(json);
  EXPECT_EQ(tokenizer->encode("ax"), Ids{256});
  EXPECT_EQ(tokenizer->encode("ay"), Ids{256});
  EXPECT_EQ(tokenizer->encode("bx"), Ids{257});
  EXPECT_EQ(tokenizer->encode("by"), (Ids{'b', 'y'}));
}

TEST(Tokenizer, PutsASpaceBeforeEveryPartWhereTheNormalizerDoes) {
  const auto tokenizer = load(metaspace_tokenizer());
  EXPECT_EQ(tokenizer->encode("hi hi"), (Ids{1, 265, 265}));
  EXPECT_EQ(tokenizer->encode("hi</s>hi", false), (Ids{265, 2, 265}));
  EXPECT_EQ(tokenizer->encode("", false), Ids{});
}

TEST(Tokenizer, PutsASpaceBeforeTheTextAloneWhereMetaspaceSaysFirst) {
  Json json = metaspace_tokenizer();
  json["normalizer"] = nullptr;
  json["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "first"}, {"split", false}};
  EXPECT_EQ(load(json)->encode("hi</s>hi", false), (Ids{265, 2, 264}));
  EXPECT_EQ(load(json)->encode("</s>hi", false), (Ids{2, 264}));
  json["pre_tokenizer"]["prepend_scheme"] = "always";
  EXPECT_EQ(load(json)->encode("hi</s>hi", false), (Ids{265, 2, 265}));
  json["pre_tokenizer"]["prepend_scheme"] = "never";
  EXPECT_EQ(load(json)->encode("hi hi", false), (Ids{264, 265}));
}

TEST(Tokenizer, FallsBackToBytesAndDecodesThem) {
  const auto tokenizer = load(metaspace_tokenizer());
  EXPECT_EQ(tokenizer->encode("\n\xC3\xA9", false), (Ids{259, 3 + 10, 3 + 0xC3, 3 + 0xA9}));
  for (const std::string text : {"hi  hi", " hi", "\n\xC3\xA9 \xF0\x9F\x98\x80", "o"}) {
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  }
  EXPECT_EQ(tokenizer->decode(Ids{3 + 0xC3, 3 + 0x28}), "\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST(Tokenizer, AddsWhatTheTemplateSays) {
  const auto tokenizer = load(metaspace_tokenizer());
  EXPECT_TRUE(tokenizer->adds_bos());
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->encode("hi", true), (Ids{1, 265}));
  EXPECT_EQ(tokenizer->encode("hi", false), Ids{265});
  EXPECT_EQ(tokenizer->decode(Ids{1, 265, 2}), "hi");
  EXPECT_EQ(tokenizer->decode(Ids{1, 265, 2}, false), "<s> hi</s>");
}

TEST(Tokenizer, TakesSpecialTokensFromTheConfig) {
  Json json = metaspace_tokenizer();
  json.erase("post_processor");
  const auto tokenizer = load(json, R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": true})");
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  EXPECT_FALSE(tokenizer->adds_bos());  // tokenizer.json alone decides
  EXPECT_EQ(load(json)->bos_id(), std::nullopt);
}

TEST(Tokenizer, NamesTheKindItDoesNotSupportAndThoseItDoes) {
  const std::string kind = "Nonsense";
  for (const char* key : {"normalizer", "pre_tokenizer", "post_processor", "decoder", "model"}) {
    Json json = metaspace_tokenizer();
    json[key] = {{"type", kind}};
    const std::string message = load_error(json);
    EXPECT_THAT(message, HasSubstr("tokenizer.json"));
    EXPECT_THAT(message, HasSubstr(key));
    EXPECT_THAT(message, HasSubstr(kind));
  }
}

TEST(Tokenizer, RefusesVocabulariesThatCannotBe) {
  const std::pair<Json, const char*> cases[] = {
      {Json(-1), "integer in [0"},  {Json(uint64_t{1} << 40), "integer in [0"},
      {Json("7"), "integer in [0"}, {Json(1.5), "integer in [0"},
      {Json(97), "two tokens"},     {Json(uint64_t{1} << 63), "integer in [0"}};
  for (const auto& [id, reason] : cases) {
    Json json = byte_level_tokenizer({});
    json["model"]["vocab"]["new"] = id;
    EXPECT_THAT(load_error(json), HasSubstr(reason));
  }
}

TEST(Tokenizer, RefusesBrokenMerges) {
  for (const Json& merge : {Json("ab"), Json("a b c"), Json({"a"}), Json(7), Json({"a", 7}), Json("x y")}) {
    Json json = byte_level_tokenizer({});
    json["model"]["merges"].push_back(merge);
    EXPECT_THAT(load_error(json), HasSubstr("merge"));
  }
}

TEST(Tokenizer, RefusesOptionsThatWouldChangeTheIds) {
  for (const auto& [key, value] : std::map<std::string, Json>{
           {"dropout", 0.1}, {"end_of_word_suffix", "</w>"}, {"continuing_subword_prefix", "##"}}) {
    Json json = byte_level_tokenizer({});
    json["model"][key] = value;
    EXPECT_THAT(load_error(json), HasSubstr(key));
  }
}

TEST(Tokenizer, RefusesSequencesNestedWithoutEnd) {
  Json part = {{"type", "NFC"}};
  for (int depth = 0; depth < 100; ++depth) part = {{"type", "Sequence"}, {"normalizers", Json::array({part})}};
  Json json = byte_level_tokenizer({});
  json["normalizer"] = part;
  EXPECT_THAT(load_error(json), HasSubstr("nested"));
}

// Every value of the file in turn is replaced by one of another kind: an error or a tokenizer, never a crash.
TEST(Tokenizer, SurvivesAnyValueAnywhereInTheFile) {
  const Json whole = metaspace_tokenizer();
  const Json flat = whole.flatten();
  for (const auto& [pointer, ignored] : flat.items()) {
    if (pointer.find("<0x") != std::string::npos) continue;  // 256 times the same
    for (const Json& value : {Json(nullptr), Json(-3), Json("?"), Json::array(), Json::object(), Json(true)}) {
      Json json = whole;
      json[Json::json_pointer(pointer)] = value;
      try {
        load(json)->encode("hi \xC3\xA9</s>");
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kBadInput) << pointer;
      }
    }
  }
}

TEST(Tokenizer, SaysWhatIsMissing) {
  const TemporaryFolder folder;
  EXPECT_THAT(error_of(ErrorKind::kMissingData, [&] { load_tokenizer(folder.path()); }), HasSubstr("tokenizer.json"));
  error_of(ErrorKind::kMissingData, [&] { load_tokenizer(folder.path() / "nothing"); });
  error_of(ErrorKind::kMissingData, [&] { load_tokenizer(folder.write("x.txt", "")); });
  folder.write("tokenizer.json", "{\"model\": ");
  error_of(ErrorKind::kBadInput, [&] { load_tokenizer(folder.path()); });
}

TEST(WriteTokenizerFiles, CopiesTheFilesOfAFolderAndNothingElse) {
  const TemporaryFolder source;
  const TemporaryFolder target;
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "merges.txt",
                           "model.safetensors", "config.json"}) {
    source.write(name, std::string("content of ") + name);
  }
  const auto written = write_tokenizer_files(source.path(), target.path() / "new");
  EXPECT_THAT(written,
              ::testing::ElementsAre("chat_template.jinja", "merges.txt", "tokenizer.json", "tokenizer_config.json"));
  std::set<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(target.path() / "new"))
    found.insert(entry.path().filename().string());
  EXPECT_EQ(found, std::set<std::string>(written.begin(), written.end()));
  std::ifstream merges(target.path() / "new" / "merges.txt");
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(merges), {}), "content of merges.txt");
}

}  // namespace
}  // namespace dynslice
