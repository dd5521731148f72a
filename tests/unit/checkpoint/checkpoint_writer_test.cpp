#include "dynslice/checkpoint/checkpoint_writer.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <fstream>
#include <iterator>
#include <limits>

#include "aten.h"
#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/formats/safetensors/safetensors_file.h"
#include "dynslice/model/checkpoint.h"
#include "unit/checkpoint/checkpoint_fixtures.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::expect_error;
using testing::TemporaryFolder;
using testing::write_bytes;

std::string content_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

at::Tensor counting(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return at::arange(count, at::kFloat).reshape(shape);
}

std::vector<OutputTensor> three_tensors() {
  return {
      {"first.weight", {3, 5}, at::kBFloat16}, {"second.weight", {7}, at::kFloat}, {"third.weight", {2, 2}, at::kHalf}};
}

class Writer : public ::testing::Test {
 protected:
  void write_all(CheckpointWriter& writer) {
    for (const OutputTensor& tensor : three_tensors()) writer.write(tensor.name, counting(tensor.shape));
    writer.write_text("config.json", "{}");
  }
  void write_checkpoint(bool force = false) {
    CheckpointWriter writer(out_, three_tensors(), force);
    write_all(writer);
    writer.commit();
  }
  size_t entries_beside() const {
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(folder_.path()), {}));
  }

  TemporaryFolder folder_;
  std::filesystem::path out_ = folder_ / "out";
  std::filesystem::path partial_ = folder_ / "out.partial";
};

TEST_F(Writer, WritesWhatSafetensorsReadsBack) {
  write_checkpoint();
  const SafetensorsFile file(out_ / "model.safetensors");
  ASSERT_EQ(file.entries().size(), 3U);
  for (const OutputTensor& tensor : three_tensors()) {
    const SafetensorsEntry& entry = file.entries().at(tensor.name);
    EXPECT_EQ(entry.shape, tensor.shape);
    const at::Tensor expected = counting(tensor.shape).to(tensor.dtype);
    ASSERT_EQ(entry.bytes, expected.nbytes());
    EXPECT_EQ(std::memcmp(file.bytes(entry).data(), expected.data_ptr(), expected.nbytes()), 0) << tensor.name;
  }
  EXPECT_EQ(file.entries().at("first.weight").dtype, "BF16");
  EXPECT_LT(file.entries().at("first.weight").offset, file.entries().at("second.weight").offset);
  EXPECT_EQ(file.entries().at("first.weight").offset % 8, 0U);
  EXPECT_EQ(content_of(out_ / "config.json"), "{}");
  EXPECT_EQ(entries_beside(), 1U);
}

TEST_F(Writer, WritesIntegersAsTheyAre) {
  const at::Tensor words = at::tensor({-1, 0, INT32_MIN, INT32_MAX, 7, 8}, at::kInt).view({3, 2});
  const at::Tensor sizes = at::tensor({int64_t{3}, int64_t{1} << 40}, at::kLong);
  CheckpointWriter writer(out_, {{"words", {3, 2}, at::kInt}, {"sizes", {2}, at::kLong}}, false);
  writer.write_rows("words", 0, words.narrow(0, 0, 1));
  writer.write_rows("words", 1, words.narrow(0, 1, 2));
  writer.write("sizes", sizes);
  writer.commit();
  const SafetensorsFile file(out_ / "model.safetensors");
  EXPECT_EQ(file.entries().at("words").dtype, "I32");
  EXPECT_EQ(file.entries().at("sizes").dtype, "I64");
  EXPECT_EQ(std::memcmp(file.bytes(file.entries().at("words")).data(), words.data_ptr(), words.nbytes()), 0);
  EXPECT_EQ(std::memcmp(file.bytes(file.entries().at("sizes")).data(), sizes.data_ptr(), sizes.nbytes()), 0);
}

TEST_F(Writer, MakesNoIntegersOfOtherValues) {
  CheckpointWriter writer(out_, {{"words", {2}, at::kInt}, {"sizes", {2}, at::kLong}}, false);
  EXPECT_THROW(writer.write("words", at::ones({2}, at::kFloat)), std::logic_error);
  EXPECT_THROW(writer.write("words", at::ones({2}, at::kLong)), std::logic_error);
  EXPECT_THROW(writer.write("sizes", at::ones({2}, at::kInt)), std::logic_error);
}

TEST_F(Writer, GivesTheSameBytesInWhateverOrderTensorsCome) {
  write_checkpoint();
  const std::string bytes = content_of(out_ / "model.safetensors");
  CheckpointWriter writer(folder_ / "other", three_tensors(), false);
  const auto tensors = three_tensors();
  for (auto tensor = tensors.rbegin(); tensor != tensors.rend(); ++tensor)
    writer.write(tensor->name, counting(tensor->shape));
  writer.commit();
  EXPECT_EQ(content_of(folder_ / "other" / "model.safetensors"), bytes);
}

TEST_F(Writer, WritesViewsThatAreNotContiguous) {
  CheckpointWriter writer(out_, {{"w", {5, 3}, at::kFloat}}, false);
  writer.write("w", counting({3, 5}).t());
  writer.commit();
  const SafetensorsFile file(out_ / "model.safetensors");
  const at::Tensor expected = counting({3, 5}).t().contiguous();
  EXPECT_EQ(std::memcmp(file.bytes(file.entries().at("w")).data(), expected.data_ptr(), expected.nbytes()), 0);
}

TEST_F(Writer, SplitsIntoShardsThatTheIndexNames) {
  CheckpointWriter writer(out_, three_tensors(), false, 36);  // 30 + 28 + 8 bytes
  EXPECT_EQ(writer.tensor_bytes(), 66U);
  write_all(writer);
  writer.commit();
  const Json index = Json::parse(content_of(out_ / "model.safetensors.index.json"));
  EXPECT_EQ(index.at("metadata").at("total_size"), 66);
  EXPECT_EQ(index.at("weight_map").at("first.weight"), "model-00001-of-00002.safetensors");
  EXPECT_EQ(index.at("weight_map").at("third.weight"), "model-00002-of-00002.safetensors");
  EXPECT_EQ(SafetensorsFile(out_ / "model-00002-of-00002.safetensors").entries().size(), 2U);
  EXPECT_FALSE(std::filesystem::exists(out_ / "model.safetensors"));
}

TEST_F(Writer, WritesCheckpointsThatOpenCheckpointReads) {
  const auto tensors = testing::tiny_llama_tensors();
  std::vector<OutputTensor> announced;
  for (const auto& tensor : tensors) announced.push_back({tensor.name, tensor.shape, at::kFloat});
  CheckpointWriter writer(out_, announced, false, 500);
  for (const OutputTensor& tensor : announced) writer.write(tensor.name, counting(tensor.shape));
  writer.write_text("config.json", testing::tiny_llama_config().dump());
  writer.commit();
  const auto checkpoint = open_checkpoint(out_);
  for (const OutputTensor& tensor : announced) {
    EXPECT_TRUE(checkpoint->load(tensor.name, tensor.shape, at::kFloat).equal(counting(tensor.shape)));
  }
}

TEST_F(Writer, LeavesNothingWithoutCommit) {
  {
    CheckpointWriter writer(out_, three_tensors(), false);
    write_all(writer);
    EXPECT_EQ(writer.folder(), partial_);
    EXPECT_TRUE(std::filesystem::exists(partial_ / "config.json"));
  }
  EXPECT_EQ(entries_beside(), 0U);
}

TEST_F(Writer, RefusesAnExistingFolderUnlessForced) {
  write_checkpoint();
  expect_error(ErrorKind::kUsage, {out_.string(), "exists", "--force"},
               [&] { CheckpointWriter(out_, three_tensors(), false); });
  write_bytes(out_ / "left-over.txt", "x");
  write_bytes(out_ / "dynslice.json", "{}");
  {
    CheckpointWriter writer(out_, three_tensors(), true);
    write_all(writer);
    EXPECT_TRUE(std::filesystem::exists(out_ / "left-over.txt"));  // the old one stays until commit
    writer.commit();
  }
  EXPECT_FALSE(std::filesystem::exists(out_ / "left-over.txt"));
  EXPECT_EQ(entries_beside(), 1U);
}

TEST_F(Writer, NeverReplacesWhatIsNoCheckpoint) {
  std::filesystem::create_directory(out_);
  write_bytes(out_ / "thesis.txt", "years of work");
  write_bytes(out_ / "config.json", "{}");  // many programs have one
  expect_error(ErrorKind::kUsage, {out_.string(), "no dynslice.json"},
               [&] { CheckpointWriter(out_, three_tensors(), true); });
  EXPECT_EQ(content_of(out_ / "thesis.txt"), "years of work");
  write_bytes(folder_ / "file", "x");
  expect_error(ErrorKind::kUsage, {"no dynslice.json"},
               [&] { CheckpointWriter(folder_ / "file", three_tensors(), true); });
  for (const char* name : {"", ".", "..", "/"}) {
    expect_error(ErrorKind::kUsage, {"output folder"}, [&] { CheckpointWriter(name, three_tensors(), true); });
  }
}

TEST_F(Writer, RefusesAFolderThatCameIntoBeingMeanwhile) {
  CheckpointWriter writer(out_, three_tensors(), false);
  write_all(writer);
  std::filesystem::create_directory(out_);
  expect_error(ErrorKind::kUsage, {out_.string(), "exists"}, [&] { writer.commit(); });
}

TEST_F(Writer, RemovesWhatAKilledRunLeft) {
  std::filesystem::create_directory(partial_);
  write_bytes(partial_ / "model.safetensors", "half a model");
  write_bytes(partial_ / "stale.json", "{}");
  write_checkpoint();
  EXPECT_FALSE(std::filesystem::exists(out_ / "stale.json"));
  EXPECT_EQ(SafetensorsFile(out_ / "model.safetensors").entries().size(), 3U);
}

TEST_F(Writer, LeavesAPartialFolderAloneThatIsNotItsOwn) {
  std::filesystem::create_directories(partial_ / "photos");
  expect_error(ErrorKind::kUsage, {partial_.string(), "in the way"},
               [&] { CheckpointWriter(out_, three_tensors(), false); });
  EXPECT_TRUE(std::filesystem::exists(partial_ / "photos"));
}

TEST_F(Writer, RefusesAFolderThatAnotherRunIsWriting) {
  const CheckpointWriter writer(out_, three_tensors(), false);
  expect_error(ErrorKind::kUsage, {partial_.string(), "another run"},
               [&] { CheckpointWriter(out_, three_tensors(), false); });
  EXPECT_TRUE(std::filesystem::exists(partial_ / "model.safetensors"));
}

TEST_F(Writer, RefusesNanAndInf) {
  CheckpointWriter writer(out_, three_tensors(), false);
  at::Tensor values = counting({3, 5});
  values[2][4] = std::numeric_limits<float>::quiet_NaN();
  expect_error(ErrorKind::kBadInput, {"first.weight", "NaN or Inf"}, [&] { writer.write("first.weight", values); });
  const at::Tensor large = at::full({2, 2}, 1e6);  // above half precision's largest number
  expect_error(ErrorKind::kBadInput, {"third.weight", "Half"}, [&] { writer.write("third.weight", large); });
  EXPECT_THROW(writer.commit(), std::logic_error);
}

TEST_F(Writer, RefusesTensorsThatWereNotAnnouncedSo) {
  CheckpointWriter writer(out_, three_tensors(), false);
  EXPECT_THROW(writer.write("fourth.weight", counting({1})), std::logic_error);
  EXPECT_THROW(writer.write("first.weight", counting({5, 3})), std::logic_error);
  writer.write("first.weight", counting({3, 5}));
  EXPECT_THROW(writer.write("first.weight", counting({3, 5})), std::logic_error);
  EXPECT_THROW(writer.commit(), std::logic_error);  // two were never written
  EXPECT_THROW(writer.write_text("../config.json", "{}"), std::logic_error);
  EXPECT_THROW(CheckpointWriter(folder_ / "twice", {{"w", {1}, at::kFloat}, {"w", {1}, at::kFloat}}, false),
               std::logic_error);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "twice.partial"));
}

TEST_F(Writer, SaysBeforehandThatTheDiskIsTooSmall) {
  const int64_t exa = int64_t{1} << 58;
  expect_error(ErrorKind::kOutOfResources, {"bytes", "free disk space"},
               [&] { CheckpointWriter(out_, {{"w", {exa}, at::kFloat}}, false); });
  EXPECT_EQ(entries_beside(), 0U);
}

TEST_F(Writer, SaysThatThePlaceCannotBeWritten) {
  write_bytes(folder_ / "file", "x");
  expect_error(ErrorKind::kMissingData, {"file"},
               [&] { CheckpointWriter(folder_ / "file" / "out", three_tensors(), false); });
}

// Lets no file grow beyond `bytes`, as a full disk would not.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    previous_handler_ = std::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &previous_);
    const rlimit limit{bytes, previous_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &previous_);
    std::signal(SIGXFSZ, previous_handler_);
  }

 private:
  rlimit previous_{};
  void (*previous_handler_)(int) = nullptr;
};

TEST_F(Writer, SaysThatTheDiskIsFullAndLeavesNothing) {
  const at::Tensor values = counting({1000, 10});
  expect_error(ErrorKind::kOutOfResources, {"out.partial", "free disk space"}, [&] {
    CheckpointWriter writer(out_, {{"w", {1000, 10}, at::kFloat}}, false);
    const FileSizeLimit limit(20000);
    writer.write("w", values);
  });
  EXPECT_EQ(entries_beside(), 0U);
  expect_error(ErrorKind::kOutOfResources, {"out.partial"}, [&] {
    const FileSizeLimit limit(50);
    CheckpointWriter(out_, three_tensors(), false);
  });
  EXPECT_EQ(entries_beside(), 0U);
}

TEST_F(Writer, RowsInBlocksAreTheWholeTensor) {
  write_checkpoint();
  const std::string whole = content_of(out_ / "model.safetensors");
  CheckpointWriter writer(folder_ / "blocks", three_tensors(), false);
  const at::Tensor first = counting({3, 5});
  writer.write_rows("first.weight", 0, first.narrow(0, 0, 2));
  writer.write("second.weight", counting({7}));
  writer.write_rows("first.weight", 2, first.narrow(0, 2, 1));
  writer.write("third.weight", counting({2, 2}));
  EXPECT_THROW(writer.write_rows("first.weight", 3, first.narrow(0, 0, 0)), std::logic_error);  // it is complete
  EXPECT_EQ(content_of(writer.folder() / "model.safetensors"), whole);
}

TEST_F(Writer, RowsWithAGapOrOfAnotherShapeAreADefect) {
  CheckpointWriter writer(out_, three_tensors(), false);
  const at::Tensor rows = counting({2, 5});
  EXPECT_THROW(writer.write_rows("first.weight", 1, rows), std::logic_error);
  EXPECT_THROW(writer.write_rows("first.weight", 0, counting({2, 4})), std::logic_error);
  writer.write_rows("first.weight", 0, rows);
  EXPECT_THROW(writer.write_rows("first.weight", 2, rows), std::logic_error);
  EXPECT_THROW(writer.write("first.weight", counting({3, 5})), std::logic_error);
  EXPECT_THROW(writer.commit(), std::logic_error);  // the last row is missing
}

}  // namespace
}  // namespace dynslice
