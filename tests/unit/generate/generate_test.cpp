#include "dynslice/generate/generate.h"

#include <gtest/gtest.h>

#include "aten.h"
#include "tiny_model.h"
#include "unit/support/error_matchers.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

// Id i is written "i ".
class NumberTokenizer final : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view, bool) const override { return {}; }
  std::string decode(std::span<const int32_t> ids, bool) const override {
    std::string text;
    for (const int32_t id : ids) text += std::to_string(id) + " ";
    return text;
  }
  int64_t vocab_size() const override { return 61; }
  std::optional<int32_t> bos_id() const override { return std::nullopt; }
  std::optional<int32_t> eos_id() const override { return 60; }
  bool adds_bos() const override { return false; }
};

const NumberTokenizer kTokenizer;
const std::vector<int32_t> kPrompt = {3, 1, 4, 1, 5, 9, 2, 6};

Generation write(const ResidentModel& model, const GenerationOptions& options,
                 const std::vector<int32_t>& prompt = kPrompt) {
  std::string shown;
  Generation result =
      generate(model, kTokenizer, prompt, options, [&](std::string_view text) { shown += text; }, no_progress());
  EXPECT_EQ(shown, result.text);
  return result;
}

// Without a cache: all tokens through all layers for every new one.
std::vector<int32_t> greedy_without_cache(const ResidentModel& model, std::vector<int32_t> ids, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    KeyValueCache cache = model.make_cache(1, static_cast<int64_t>(ids.size()));
    const at::Tensor stream = model.forward(at::tensor(ids, at::kInt).to(at::kLong).unsqueeze(0), cache);
    ids.push_back(model.logits(stream.select(1, -1)).argmax(-1).item<int32_t>());
  }
  return {ids.end() - count, ids.end()};
}

TEST(Generate, TakesTheLikeliestTokenAfterAllThoseBefore) {
  const ResidentModel model(testing::tiny_model(), {}, no_progress());
  const Generation result = write(model, {.max_tokens = 20});
  EXPECT_EQ(result.ids, greedy_without_cache(model, kPrompt, 20));
  EXPECT_EQ(result.text, kTokenizer.decode(result.ids, true));
  EXPECT_EQ(result.finish, FinishReason::kLength);
}

TEST(Generate, DoesNotDependOnHowTheChunksOfThePromptFall) {
  const auto checkpoint = testing::tiny_model();
  const Generation whole = write(ResidentModel(checkpoint, {}, no_progress()), {.max_tokens = 12});
  for (const int64_t chunk : {1, 3, 8}) {
    const ResidentModel model(checkpoint, {.chunk_tokens = chunk}, no_progress());
    EXPECT_EQ(write(model, {.max_tokens = 12}).ids, whole.ids);
  }
}

TEST(Generate, EndsWithATokenThatEndsTextsAndDoesNotShowIt) {
  const ResidentModel model(testing::tiny_model(), {}, no_progress());
  const std::vector<int32_t> all = write(model, {.max_tokens = 20}).ids;
  const int32_t end = all[5];
  const auto first = static_cast<size_t>(std::find(all.begin(), all.end(), end) - all.begin());
  const Generation result = write(model, {.max_tokens = 20, .end_ids = {60, end}});
  EXPECT_EQ(result.ids, std::vector<int32_t>(all.begin(), all.begin() + static_cast<int64_t>(first) + 1));
  EXPECT_EQ(result.text, kTokenizer.decode(std::span(all).first(first), true));
  EXPECT_EQ(result.finish, FinishReason::kEnd);
}

TEST(Generate, EndsBeforeAStop) {
  const ResidentModel model(testing::tiny_model(), {}, no_progress());
  const Generation all = write(model, {.max_tokens = 20});
  const std::string stop = " " + std::to_string(all.ids[4]) + " ";
  const Generation result = write(model, {.max_tokens = 20, .stops = {stop}});
  EXPECT_EQ(result.text, all.text.substr(0, all.text.find(stop)));
  EXPECT_EQ(result.finish, FinishReason::kStop);
  EXPECT_LE(result.ids.size(), 5U);
}

TEST(Generate, EndsAtTheModelsLastPosition) {
  const ResidentModel model(testing::tiny_model(), {}, no_progress());
  const std::vector<int32_t> prompt(120, 7);
  const Generation result = write(model, {.max_tokens = 1000}, prompt);
  EXPECT_EQ(result.ids.size(), 9U);  // eight that take the positions left, and one that takes none
  EXPECT_EQ(result.finish, FinishReason::kContext);
  EXPECT_EQ(write(model, {.max_tokens = 9}, prompt).finish, FinishReason::kLength);
}

TEST(Generate, DrawsTheSameTextForTheSameSeed) {
  const ResidentModel model(testing::tiny_model(), {}, no_progress());
  const auto draw = [&](uint64_t seed) {
    return write(model, {.sampling = {.temperature = 1.5, .top_k = 30, .top_p = 0.95, .seed = seed}, .max_tokens = 30})
        .ids;
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
}

TEST(Generate, RefusesPromptsThatItCannotGoOnFrom) {
  const auto checkpoint = testing::tiny_model();
  const ResidentModel model(checkpoint, {}, no_progress());
  testing::expect_error(ErrorKind::kUsage, {"empty"}, [&] { write(model, {}, {}); });
  testing::expect_error(ErrorKind::kUsage, {"128 tokens", "128 positions"},
                        [&] { write(model, {}, std::vector<int32_t>(128, 1)); });
  testing::expect_error(ErrorKind::kUsage, {"128 tokens"},
                        [&] { check_prompt(checkpoint, kTokenizer, std::vector<int32_t>(128, 1)); });
  testing::expect_error(ErrorKind::kBadInput, {"tiny", "token id 61", "61 entries", "different models"},
                        [&] { check_prompt(checkpoint, kTokenizer, std::vector<int32_t>{1, 61}); });
  testing::expect_error(ErrorKind::kUsage, {"0 tokens"}, [&] { write(model, {.max_tokens = 0}); });
}

TEST(Generate, PassesOnWhatTheReaderThrows) {
  const ResidentModel model(testing::tiny_model(), {}, no_progress());
  int calls = 0;
  const auto leave = [&](std::string_view) {
    if (++calls == 3) throw std::runtime_error("gone");
  };
  EXPECT_THROW(generate(model, kTokenizer, kPrompt, {.max_tokens = 50}, leave, no_progress()), std::runtime_error);
  EXPECT_EQ(calls, 3);
}

// ---- Tokens that end a text ----

// A checkpoint of which only the path matters.
class At final : public Checkpoint {
 public:
  explicit At(std::filesystem::path path) { path_ = std::move(path); }
  std::vector<TensorInfo> tensors() const override { return {}; }
  const TensorInfo* find(const std::string&) const override { return nullptr; }
  std::vector<std::filesystem::path> files() const override { return {}; }
  at::ScalarType storage_dtype() const override { return at::kFloat; }

 protected:
  std::filesystem::path file_of(const TensorInfo&) const override { return path_; }
  at::Tensor read_rows(const TensorInfo&, int64_t, int64_t, at::ScalarType) const override { return {}; }
};

TEST(EndTokens, AreAllThatTheFilesOfTheModelName) {
  const testing::TemporaryFolder folder;
  const auto ids = [&] { return end_token_ids(At(folder.path()), kTokenizer); };
  EXPECT_EQ(ids(), std::vector<int32_t>{60});
  testing::write_bytes(folder / "config.json", R"({"eos_token_id": 7})");
  EXPECT_EQ(ids(), (std::vector<int32_t>{7, 60}));
  testing::write_bytes(folder / "generation_config.json", R"({"eos_token_id": [9, 7, 3]})");
  EXPECT_EQ(ids(), (std::vector<int32_t>{3, 7, 9, 60}));
  testing::write_bytes(folder / "generation_config.json", R"({"eos_token_id": null})");
  EXPECT_EQ(ids(), (std::vector<int32_t>{7, 60}));
  testing::write_bytes(folder / "generation_config.json", R"({"eos_token_id": ["a"]})");
  testing::expect_error(ErrorKind::kBadInput, {"generation_config.json", "eos_token_id"}, ids);
}

}  // namespace
}  // namespace dynslice
