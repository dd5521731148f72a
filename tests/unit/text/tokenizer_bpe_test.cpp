#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <vector>

#include "dynslice/text/tokenizer/tokenizer_unicode.h"
#include "text/tokenizer/bpe_model.h"
#include "unit/text/tokenizer_fixture.h"

namespace dynslice {
namespace {

using Ids = std::vector<int32_t>;

constexpr const char* kMetaspace = "\xE2\x96\x81";

// Characters first, then what each merge makes.
struct Spec {
  std::vector<std::string> characters;
  std::vector<BpeMerge> merges;

  StringMap<int32_t> vocab() const {
    StringMap<int32_t> ids;
    for (const auto& text : characters) ids.emplace(text, static_cast<int32_t>(ids.size()));
    for (const auto& merge : merges) ids.emplace(merge.left + merge.right, static_cast<int32_t>(ids.size()));
    return ids;
  }
};

Ids encode(const BpeModel& model, const std::string& word) {
  BpeModel::Cache cache;
  Ids ids;
  model.encode(word, cache, ids);
  return ids;
}

// The definition of BPE, without a queue: join the pair of the lowest rank, the leftmost first, until none is left.
std::vector<std::string> merge_by_definition(std::vector<std::string> parts, const std::vector<BpeMerge>& merges) {
  while (true) {
    size_t best_rank = merges.size();
    size_t best_at = 0;
    for (size_t at = 0; at + 1 < parts.size(); ++at) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (merges[rank].left == parts[at] && merges[rank].right == parts[at + 1]) {
          best_rank = rank;
          best_at = at;
        }
      }
    }
    if (best_rank == merges.size()) return parts;
    parts[best_at] += parts[best_at + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best_at) + 1);
  }
}

Spec random_spec(std::mt19937& random, bool across_spaces) {
  Spec spec{{"a", "b", "c", kMetaspace}, {}};
  std::vector<std::string> tokens = spec.characters;
  for (int i = 0; i < 30; ++i) {
    const std::string left = tokens[random() % tokens.size()];
    const std::string right = tokens[random() % tokens.size()];
    if (!across_spaces && right.starts_with(kMetaspace) && !left.ends_with(kMetaspace)) continue;
    if (std::find(tokens.begin(), tokens.end(), left + right) != tokens.end()) continue;
    spec.merges.push_back({left, right});
    tokens.push_back(left + right);
  }
  return spec;
}

// Half of the vocabularies merge across "▁", so that words may not be cut before it; the other half does not.
TEST(BpeModel, GivesWhatTheDefinitionOfBpeGives) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    const Spec spec = random_spec(random, round % 2 == 0);
    const BpeModel model(spec.vocab(), spec.merges, {}, "test");
    std::vector<std::string> parts;
    for (size_t i = 0, length = random() % 60; i < length; ++i) parts.push_back(spec.characters[random() % 4]);
    std::string word;
    for (const auto& part : parts) word += part;
    Ids expected;
    for (const auto& token : merge_by_definition(parts, spec.merges)) expected.push_back(*model.id_of(token));
    ASSERT_EQ(encode(model, word), expected) << word;
  }
}

TEST(BpeModel, GivesTheSameIdsFromItsCache) {
  const Spec spec{{"a", "b"}, {{"a", "b"}}};
  const BpeModel model(spec.vocab(), spec.merges, {}, "test");
  BpeModel::Cache cache;
  Ids ids;
  for (int i = 0; i < 3; ++i) model.encode("aba", cache, ids);
  EXPECT_EQ(ids, (Ids{2, 0, 2, 0, 2, 0}));
}

TEST(BpeModel, TakesTimeProportionalToTheTextForOneLongWord) {
  const Spec spec{{"a", "b"}, {{"a", "a"}, {"aa", "aa"}, {"a", "b"}}};
  const BpeModel model(spec.vocab(), spec.merges, {}, "test");
  // A quadratic merge would take minutes here, and the test's time limit would end it.
  EXPECT_EQ(encode(model, std::string(1'000'000, 'a')).size(), 250'000u);
}

TEST(BpeModel, LeavesOutUnknownCharactersWithoutAnUnknownToken) {
  const BpeModel model({{"a", 0}, {"b", 1}, {"ab", 2}}, {{"a", "b"}}, {}, "test");
  EXPECT_EQ(encode(model, "axb"), Ids{2});
}

TEST(BpeModel, FusesUnknownCharactersOnlyOnRequest) {
  const StringMap<int32_t> vocab = {{"a", 0}, {"<unk>", 1}};
  EXPECT_EQ(encode(BpeModel(vocab, {}, {.unk_token = "<unk>"}, "test"), "axya"), (Ids{0, 1, 1, 0}));
  EXPECT_EQ(encode(BpeModel(vocab, {}, {.unk_token = "<unk>", .fuse_unk = true}, "test"), "axya"), (Ids{0, 1, 0}));
}

TEST(BpeModel, FallsBackToBytesWhereAllOfThemExist) {
  const BpeModel model({{"<unk>", 0}, {"<0xC3>", 1}, {"<0xA9>", 2}, {"<0x0A>", 3}}, {},
                       {.unk_token = "<unk>", .byte_fallback = true}, "test");
  EXPECT_EQ(encode(model, "\xC3\xA9\n"), (Ids{1, 2, 3}));
  EXPECT_EQ(encode(model, "\xC3\xA8"), Ids{0});
}

TEST(BpeModel, TakesAWholeWordFromTheVocabularyWhenMergesAreIgnored) {
  const StringMap<int32_t> vocab = {{"a", 0}, {"b", 1}, {"ab", 2}};
  EXPECT_EQ(encode(BpeModel(vocab, {}, {}, "test"), "ab"), (Ids{0, 1}));
  EXPECT_EQ(encode(BpeModel(vocab, {}, {.unk_token = "", .ignore_merges = true}, "test"), "ab"), Ids{2});
}

TEST(BpeModel, RefusesIdsGivenTwiceAndMergesOfUnknownTokens) {
  std::string message = error_of(ErrorKind::kBadInput, [] { BpeModel({{"a", 5}, {"b", 5}}, {}, {}, "FILE"); });
  EXPECT_EQ(message, "FILE: id 5 is given to two tokens, \"a\" and \"b\"");
  message = error_of(ErrorKind::kBadInput, [] { BpeModel({{"a", 0}, {"b", 1}}, {{"a", "b"}}, {}, "FILE"); });
  EXPECT_EQ(message, "FILE: merge 0 names the token \"ab\", which is not in the vocabulary");
  error_of(ErrorKind::kBadInput, [] { BpeModel({{"a", -1}}, {}, {}, "FILE"); });
  error_of(ErrorKind::kBadInput, [] { BpeModel({{"a", 1 << 24}}, {}, {}, "FILE"); });
}

TEST(BpeModel, NamesAnUnknownTokenThatIsNotInTheVocabularyWhenItIsNeeded) {
  const BpeModel model({{"a", 0}}, {}, {.unk_token = "<unk>"}, "FILE");
  EXPECT_EQ(encode(model, "a"), Ids{0});
  error_of(ErrorKind::kBadInput, [&] { encode(model, "x"); });
}

}  // namespace
}  // namespace dynslice
