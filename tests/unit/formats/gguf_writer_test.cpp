#include "dynslice/formats/gguf/gguf_writer.h"

#include <gtest/gtest.h>

#include <array>
#include <stdexcept>

#include "unit/support/error_matchers.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

using testing::expect_error;
using testing::TemporaryFolder;
using testing::write_bytes;

const GgufMetadata kMetadata = {{"general.architecture", std::string("llama")},
                                {"llama.block_count", int64_t{2}},
                                {"below zero", int64_t{-1}},
                                {"llama.rope.freq_base", 1e5},
                                {"flag", true},
                                {"tokens", std::vector<std::string>{"a", "", "\xC3\xA9"}},
                                {"types", std::vector<int64_t>{1, -3}},
                                {"wide", std::vector<int64_t>{int64_t{1} << 40}},
                                {"scores", std::vector<double>{0.5, -1}}};

class GgufWriting : public ::testing::Test {
 protected:
  std::vector<GgufOutputTensor> tensors() const {
    return {{"a.weight", {3}, GgmlType::kF32},
            {"b.weight", {2, 32}, GgmlType::kQ8_0},
            {"c.weight", {1, 2}, GgmlType::kF16}};
  }
  void write_all(GgufWriter& writer) const {
    const std::array<float, 3> floats{1, 2, 3};
    const std::array<std::byte, 34> block{std::byte{7}};
    writer.write("a.weight", std::as_bytes(std::span(floats)));
    writer.write("b.weight", block);  // in two parts
    writer.write("b.weight", block);
    writer.write("c.weight", std::array<std::byte, 4>{});
  }

  TemporaryFolder folder_;
  std::filesystem::path out_ = folder_.path() / "m.gguf";
};

TEST_F(GgufWriting, WhatIsWrittenIsReadBack) {
  GgufWriter writer(out_, kMetadata, tensors(), false);
  write_all(writer);
  EXPECT_FALSE(std::filesystem::exists(out_));
  writer.commit();
  EXPECT_EQ(std::filesystem::file_size(out_), writer.file_bytes());
  EXPECT_FALSE(std::filesystem::exists(writer.partial()));
  const GgufFile file(out_);
  for (const auto& [key, value] : kMetadata) EXPECT_EQ(file.metadata().at(key), value) << key;
  ASSERT_EQ(file.tensors().size(), 3U);
  EXPECT_EQ(file.find("b.weight")->shape, (std::vector<int64_t>{2, 32}));
  EXPECT_EQ(file.find("b.weight")->type, GgmlType::kQ8_0);
  EXPECT_EQ(file.bytes(*file.find("b.weight"))[34], std::byte{7});
  EXPECT_EQ(file.find("c.weight")->offset % 32, 0U);
}

TEST_F(GgufWriting, WithoutCommitNothingIsLeft) {
  {
    GgufWriter writer(out_, kMetadata, tensors(), false);
    write_all(writer);
    EXPECT_TRUE(std::filesystem::exists(writer.partial()));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

TEST_F(GgufWriting, TensorsAreWrittenWholeAndInOrder) {
  GgufWriter writer(out_, kMetadata, tensors(), false);
  EXPECT_THROW(writer.write("b.weight", {}), std::logic_error);
  EXPECT_THROW(writer.write("a.weight", std::array<std::byte, 13>{}), std::logic_error);
  writer.write("a.weight", std::array<std::byte, 12>{});
  EXPECT_THROW(writer.commit(), std::logic_error);
  EXPECT_THROW(GgufWriter(folder_.path() / "n.gguf", kMetadata, {{"x", {2, 33}, GgmlType::kQ8_0}}, false),
               std::logic_error);
}

TEST_F(GgufWriting, OnlyGgufFilesAreReplacedAndOnlyByForce) {
  write_bytes(out_, "GGUF and more");
  expect_error(ErrorKind::kUsage, {"m.gguf: exists"}, [&] { GgufWriter(out_, kMetadata, {}, false); });
  GgufWriter writer(out_, kMetadata, {}, true);
  expect_error(ErrorKind::kUsage, {"another run is writing it"}, [&] { GgufWriter(out_, kMetadata, {}, true); });
  writer.commit();
  EXPECT_EQ(GgufFile(out_).integer("llama.block_count"), 2);
  const std::filesystem::path letter = folder_.path() / "letter.txt";
  write_bytes(letter, "Dear reader");
  expect_error(ErrorKind::kUsage, {"is no GGUF file"}, [&] { GgufWriter(letter, kMetadata, {}, true); });
  expect_error(ErrorKind::kMissingData, {"no"},
               [&] { GgufWriter(folder_.path() / "no" / "m.gguf", kMetadata, {}, false); });
}

}  // namespace
}  // namespace dynslice
