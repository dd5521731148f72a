#include "dynslice/formats/gguf/gguf_file.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>

#include "unit/formats/gguf_builder.h"
#include "unit/support/error_matchers.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

using testing::append;
using testing::expect_error;
using testing::GgufBuilder;
using testing::TemporaryFolder;
using testing::write_bytes;

// Every kind of value, a plain tensor and one of blocks.
GgufBuilder small_file() {
  GgufBuilder builder;
  builder.text("general.architecture", "llama")
      .number("llama.block_count", 2)
      .real("llama.rope.freq_base", 1e5F)
      .boolean("tokenizer.ggml.add_bos_token", 1)
      .wide("big", uint64_t{1} << 40)
      .texts("tokenizer.ggml.tokens", {"a", "", "\xff\xfe"});
  builder.floats("output_norm.weight", {8}, {1, 2, 3, 4, 5, 6, 7, 8});
  builder.tensor("blk.0.attn_q.weight", {2, 32}, 2, std::string(2 * 18, '\x11'));
  builder.floats("last.weight", {2, 4}, std::vector<float>(8, 3.0F));
  return builder;
}

class GgufContainer : public ::testing::Test {
 protected:
  GgufFile open(const std::string& bytes) {
    write_bytes(path_, bytes);
    return GgufFile(path_);
  }
  void expect_refused(const std::string& bytes, const std::vector<std::string>& parts) {
    expect_error(ErrorKind::kBadInput, parts, [&] { open(bytes); });
  }

  TemporaryFolder folder_;
  std::filesystem::path path_ = folder_ / "model.gguf";
};

TEST_F(GgufContainer, GivesMetadataAsWritten) {
  const GgufFile file = open(small_file().bytes());
  EXPECT_EQ(file.string("general.architecture"), "llama");
  EXPECT_EQ(file.integer("llama.block_count"), 2);
  EXPECT_EQ(file.number("llama.rope.freq_base"), 1e5);
  EXPECT_TRUE(file.boolean("tokenizer.ggml.add_bos_token"));
  EXPECT_EQ(file.integer("big"), int64_t{1} << 40);
  EXPECT_EQ(file.strings("tokenizer.ggml.tokens"), (std::vector<std::string>{"a", "", "\xff\xfe"}));
  EXPECT_FALSE(file.has("absent"));
}

TEST_F(GgufContainer, GivesTensorsWithTheOutermostSizeFirst) {
  const GgufFile file = open(small_file().bytes());
  ASSERT_EQ(file.tensors().size(), 3U);
  const GgufTensor* blocks = file.find("blk.0.attn_q.weight");
  ASSERT_NE(blocks, nullptr);
  EXPECT_EQ(blocks->shape, (std::vector<int64_t>{2, 32}));
  EXPECT_EQ(blocks->type, GgmlType::kQ4_0);
  EXPECT_EQ(blocks->bytes, 36U);
  EXPECT_EQ(file.bytes(*blocks)[35], std::byte{0x11});
  float third = 0;
  std::memcpy(&third, file.bytes(*file.find("output_norm.weight")).data() + 8, sizeof third);
  EXPECT_EQ(third, 3.0F);
  EXPECT_EQ(file.find("nothing"), nullptr);
}

TEST_F(GgufContainer, ReadsVersion2AndOtherAlignments) {
  GgufBuilder builder;
  builder.version = 2;
  builder.alignment = 64;
  builder.number("general.alignment", 64).floats("a", {4}, {1, 2, 3, 4}).floats("b", {4}, {5, 6, 7, 8});
  const GgufFile file = open(builder.bytes());
  float first = 0;
  std::memcpy(&first, file.bytes(*file.find("b")).data(), sizeof first);
  EXPECT_EQ(first, 5.0F);
}

TEST_F(GgufContainer, TakesAnIntegerWhereANumberIsAskedFor) {
  const GgufFile file = open(small_file().bytes());
  EXPECT_EQ(file.number("llama.block_count"), 2.0);
}

TEST_F(GgufContainer, NamesFileAndKeyOfMetadataThatAreMissingOrOfAnotherType) {
  const GgufFile file = open(small_file().bytes());
  expect_error(ErrorKind::kBadInput, {path_.string(), "\"nope\"", "missing"}, [&] { file.integer("nope"); });
  expect_error(ErrorKind::kBadInput, {"general.architecture", "integer"},
               [&] { file.integer("general.architecture"); });
  expect_error(ErrorKind::kBadInput, {"llama.block_count", "string"}, [&] { file.string("llama.block_count"); });
  expect_error(ErrorKind::kBadInput, {"array of strings"}, [&] { file.strings("big"); });
  expect_error(ErrorKind::kBadInput, {"boolean"}, [&] { file.boolean("big"); });
}

TEST_F(GgufContainer, RefusesAFileThatIsCutAnywhere) {
  const std::string whole = small_file().bytes();
  for (size_t length = 0; length < whole.size(); ++length) {
    SCOPED_TRACE(length);
    expect_refused(whole.substr(0, length), {path_.string(), "at byte"});
  }
}

TEST_F(GgufContainer, NeverLeavesItsBoundsWhateverByteIsWrong) {
  const std::string whole = small_file().bytes();
  size_t opened = 0, refused = 0;
  for (size_t i = 0; i < whole.size(); ++i) {
    for (const int flip : {0x01, 0x80, 0xff}) {
      std::string bytes = whole;
      bytes[i] = static_cast<char>(bytes[i] ^ flip);
      try {
        const GgufFile file = open(bytes);
        for (const GgufTensor& tensor : file.tensors()) {
          const auto extent = file.bytes(tensor);
          ASSERT_LE(static_cast<uint64_t>(extent.data() - file.file().bytes().data()) + extent.size(), bytes.size());
        }
        ++opened;
      } catch (const Error&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(opened, 0U);   // flips in values and data
  EXPECT_GT(refused, 0U);  // flips in lengths, types and offsets
}

TEST_F(GgufContainer, RefusesWhatIsNoGguf) {
  expect_refused("PK\x03\x04 something else entirely", {"byte 0", "GGUF"});
  GgufBuilder version = small_file();
  version.version = 1;
  expect_refused(version.bytes(), {"byte 4", "version 2 or 3", "version 1"});
  GgufBuilder big_endian = small_file();
  big_endian.version = 0x03000000;
  expect_refused(big_endian.bytes(), {"little-endian", "big-endian"});
}

TEST_F(GgufContainer, RefusesCountsThatTheFileCannotHoldBeforeAllocating) {
  std::string tensors = small_file().bytes(), keys = tensors;
  const uint64_t huge = uint64_t{1} << 60;
  std::memcpy(tensors.data() + 8, &huge, 8);
  std::memcpy(keys.data() + 16, &huge, 8);
  expect_refused(tensors, {"byte 8", "tensors"});
  expect_refused(keys, {"byte 16", "metadata keys"});
  std::string length, array;
  append<uint64_t>(length, huge);
  expect_refused(GgufBuilder().raw("k", 8, length).bytes(), {"key \"k\"", "1152921504606846976 bytes"});
  append<uint32_t>(array, 4);
  append<uint64_t>(array, huge);
  expect_refused(GgufBuilder().raw("k", 9, array).bytes(), {"elements of key \"k\""});
}

TEST_F(GgufContainer, RefusesValuesItCannotRepresent) {
  expect_refused(GgufBuilder().wide("k", uint64_t{1} << 63).bytes(), {"key \"k\"", "below 2^63"});
  expect_refused(GgufBuilder().boolean("k", 2).bytes(), {"key \"k\"", "0 or 1"});
  expect_refused(GgufBuilder().raw("k", 13, std::string(8, '\0')).bytes(), {"key \"k\"", "13"});
  std::string nested;
  append<uint32_t>(nested, 9);
  append<uint64_t>(nested, 0);
  expect_refused(GgufBuilder().raw("k", 9, nested).bytes(), {"key \"k\"", "element type 9"});
}

TEST_F(GgufContainer, ListsTheSupportedTypesWhenATensorHasAnother) {
  GgufBuilder builder;
  builder.tensor("w", {1, 256}, 23, std::string(136, '\0'));
  expect_refused(builder.bytes(), {"\"w\"", "type 23", "Q4_K", "BF16"});
}

TEST_F(GgufContainer, RefusesTensorsThatCannotBe) {
  expect_refused(GgufBuilder().tensor("w", {2, 33}, 2, std::string(64, '\0')).bytes(),
                 {"\"w\"", "multiple of 32", "33"});
  expect_refused(GgufBuilder().tensor("w", {0}, 0, "").bytes(), {"\"w\"", "found 0"});
  expect_refused(GgufBuilder().tensor("w", {}, 0, std::string(8, '\0')).bytes(), {"\"w\"", "1 to 4 dimensions"});
  expect_refused(GgufBuilder().tensor("w", {1, 1, 1, 1, 1}, 0, std::string(8, '\0')).bytes(), {"1 to 4 dimensions"});
  const uint64_t wide = uint64_t{1} << 32;
  expect_refused(GgufBuilder().tensor("w", {wide, wide}, 0, std::string(64, '\0')).bytes(), {"\"w\"", "size"});
  expect_refused(GgufBuilder().tensor("w", {1024}, 0, std::string(64, '\0')).bytes(), {"\"w\"", "4096 bytes", "end"});
  expect_refused(GgufBuilder().tensor_at("w", {4}, 0, std::string(64, '\0'), 8).bytes(), {"\"w\"", "multiple of 32"});
  expect_refused(GgufBuilder().tensor_at("w", {4}, 0, "", UINT64_MAX - 31).bytes(), {"\"w\"", "end of the file"});
  expect_refused(GgufBuilder().floats("evil\nname", {1}, {1}).bytes(), {"printable"});
}

TEST_F(GgufContainer, RefusesTensorsAndKeysThatComeTwiceOrOverlap) {
  expect_refused(GgufBuilder().floats("w", {1}, {1}).floats("w", {1}, {1}).bytes(), {"\"w\" again"});
  expect_refused(GgufBuilder().number("k", 1).number("k", 1).bytes(), {"\"k\" again"});
  GgufBuilder overlap;
  overlap.tensor_at("a", {16}, 0, std::string(64, '\0'), 0).tensor_at("b", {8}, 0, std::string(32, '\0'), 32);
  expect_refused(overlap.bytes(), {"\"a\" alone", "\"b\" too"});
}

TEST_F(GgufContainer, RefusesAlignmentsThatAreNoPowerOfTwo) {
  for (const uint32_t alignment : {0U, 24U, 1U << 30}) {
    expect_refused(GgufBuilder().number("general.alignment", alignment).bytes(), {"general.alignment", "power of two"});
  }
}

TEST_F(GgufContainer, SaysThatAFileIsNotThere) {
  expect_error(ErrorKind::kMissingData, {"absent.gguf"}, [&] { GgufFile file(folder_ / "absent.gguf"); });
}

TEST(RealGgufFile, ReadsARealModel) {
  const char* model = std::getenv("DYNSLICE_TEST_MODEL");
  if (model == nullptr) GTEST_SKIP() << "SKIPPED: DYNSLICE_TEST_MODEL does not name a .gguf file";
  const GgufFile file{std::filesystem::path(model)};
  const GgufTensor* embedding = file.find("token_embd.weight");
  ASSERT_NE(embedding, nullptr);
  EXPECT_EQ(embedding->shape.front(), static_cast<int64_t>(file.strings("tokenizer.ggml.tokens").size()));
  EXPECT_EQ(embedding->shape.back(), file.integer(file.string("general.architecture") + ".embedding_length"));
}

}  // namespace
}  // namespace dynslice
