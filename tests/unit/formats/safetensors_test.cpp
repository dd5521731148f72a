#include <gtest/gtest.h>

#include "dynslice/formats/safetensors/safetensors_file.h"
#include "unit/checkpoint/checkpoint_fixtures.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::expect_error;
using testing::FixtureJson;
using testing::RawTensor;
using testing::safetensors_bytes;
using testing::safetensors_header;
using testing::TemporaryFolder;
using testing::write_bytes;

std::vector<RawTensor> two_tensors() {
  return {{"a", "F32", {2, 3}, std::string(24, 'x')}, {"b", "BF16", {5}, std::string(10, 'y')}};
}

class Safetensors : public ::testing::Test {
 protected:
  SafetensorsFile open(const std::string& bytes) {
    write_bytes(path_, bytes);
    return SafetensorsFile(path_);
  }
  void expect_refused(const std::string& bytes, std::vector<std::string> parts) {
    parts.push_back(path_.string());
    expect_error(ErrorKind::kBadInput, parts, [&] { open(bytes); });
  }
  // The two tensors with one place of their header replaced.
  void expect_header_refused(const std::string& pointer, const FixtureJson& value,
                             const std::vector<std::string>& parts) {
    SCOPED_TRACE(pointer + " = " + value.dump());
    FixtureJson header = safetensors_header(two_tensors());
    header[FixtureJson::json_pointer(pointer)] = value;
    expect_refused(safetensors_bytes(header.dump(), std::string(34, 'x')), parts);
  }

  TemporaryFolder folder_;
  std::filesystem::path path_ = folder_ / "model.safetensors";
};

TEST_F(Safetensors, GivesTheTensorsAsWritten) {
  const SafetensorsFile file = open(safetensors_bytes(two_tensors()));
  ASSERT_EQ(file.entries().size(), 2U);
  const SafetensorsEntry& b = file.entries().at("b");
  EXPECT_EQ(b.dtype, "BF16");
  EXPECT_EQ(b.shape, (std::vector<int64_t>{5}));
  ASSERT_EQ(file.bytes(b).size(), 10U);
  EXPECT_EQ(file.bytes(b)[0], std::byte{'y'});
  EXPECT_EQ(file.bytes(file.entries().at("a"))[23], std::byte{'x'});
}

TEST_F(Safetensors, IgnoresMetadataAndAcceptsEmptyTensorsAndScalars) {
  std::vector<RawTensor> tensors = {{"scalar", "F32", {}, std::string(4, 'x')}, {"empty", "F16", {0, 7}, ""}};
  FixtureJson header = safetensors_header(tensors);
  header["__metadata__"] = {{"format", "pt"}};
  const SafetensorsFile file = open(safetensors_bytes(header.dump() + "   ", "xxxx"));
  EXPECT_EQ(file.entries().size(), 2U);
  EXPECT_EQ(file.entries().at("empty").bytes, 0U);
}

TEST_F(Safetensors, ListsTensorsOfDtypesItDoesNotKnow) {
  const SafetensorsFile file = open(safetensors_bytes({{"odd", "F4_E2M1", {4}, "xy"}}));
  EXPECT_EQ(file.entries().at("odd").dtype, "F4_E2M1");
}

TEST_F(Safetensors, RefusesAFileThatIsCutAnywhere) {
  const std::string whole = safetensors_bytes(two_tensors());
  for (size_t length = 0; length < whole.size(); ++length) {
    SCOPED_TRACE(length);
    expect_refused(whole.substr(0, length), {});
  }
}

TEST_F(Safetensors, NeverLeavesItsBoundsWhateverByteIsWrong) {
  const std::string whole = safetensors_bytes(two_tensors());
  size_t opened = 0, refused = 0;
  for (size_t i = 0; i < whole.size(); ++i) {
    for (const int flip : {0x01, 0x02, 0x10, 0x80, 0xff}) {
      std::string bytes = whole;
      bytes[i] = static_cast<char>(bytes[i] ^ flip);
      try {
        const SafetensorsFile file = open(bytes);
        for (const auto& [name, entry] : file.entries())
          ASSERT_LE(entry.offset + file.bytes(entry).size(), bytes.size());
        ++opened;
      } catch (const Error&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(opened, 0U);   // flips in names and data
  EXPECT_GT(refused, 0U);  // flips in the header
}

TEST_F(Safetensors, RefusesAHeaderLengthThatLies) {
  const std::string whole = safetensors_bytes(two_tensors());
  for (const uint64_t length : {uint64_t{0}, uint64_t{1}, uint64_t{whole.size()}, uint64_t{1} << 40, UINT64_MAX}) {
    std::string bytes = whole;
    std::memcpy(bytes.data(), &length, sizeof length);
    expect_refused(bytes, {"header", std::to_string(length)});
  }
}

TEST_F(Safetensors, RefusesOffsetsThatLie) {
  expect_header_refused("/a/data_offsets", {0, 1 << 20}, {"\"a\"", "data_offsets", "34 bytes"});
  expect_header_refused("/a/data_offsets", {24, 0}, {"\"a\"", "data_offsets"});
  expect_header_refused("/a/data_offsets", {-1, 24}, {"\"a\"", "data_offsets"});
  expect_header_refused("/a/data_offsets", {0.0, 24.0}, {"\"a\"", "data_offsets"});
  expect_header_refused("/a/data_offsets", {0, 24, 30}, {"\"a\"", "data_offsets"});
  expect_header_refused("/b/data_offsets", {20, 30}, {"\"b\"", "begins at byte"});  // overlaps a
  expect_header_refused("/b/data_offsets", UINT64_MAX, {"\"b\"", "data_offsets"});
}

TEST_F(Safetensors, RefusesHolesAndTrailingBytes) {
  FixtureJson header = safetensors_header(two_tensors());
  header["b"]["data_offsets"] = {26, 36};
  expect_refused(safetensors_bytes(header.dump(), std::string(36, 'x')), {"\"b\"", "expected"});
  expect_refused(safetensors_bytes(two_tensors()) + "z", {"where the last tensor ends"});
}

TEST_F(Safetensors, RefusesShapesThatDoNotFitTheirExtent) {
  expect_header_refused("/a/shape", {2, 4}, {"\"a\"", "F32"});
  expect_header_refused("/a/shape", {-2, -3}, {"\"a\"", "shape"});
  expect_header_refused("/a/shape", {1LL << 62, 1LL << 62}, {"\"a\""});  // 2^126 bytes: 0 when it overflows
  expect_header_refused("/a/shape", {uint64_t{1} << 63, 2}, {"\"a\"", "shape"});
  expect_header_refused("/a/shape", "2x3", {"\"a\"", "shape"});
  expect_header_refused("/a/dtype", 32, {"\"a\"", "dtype"});
  expect_header_refused("/a/dtype", "F16", {"\"a\"", "F16"});
  expect_header_refused("/a", FixtureJson::array(), {"\"a\""});
}

TEST_F(Safetensors, RefusesHeadersThatAreNoObject) {
  expect_refused(safetensors_bytes("[1, 2]", ""), {"object"});
  expect_refused(safetensors_bytes("{\"a\": ", ""), {"JSON"});
  const std::string deep = std::string(300000, '[') + std::string(300000, ']');
  expect_refused(safetensors_bytes("{\"a\": {\"shape\": " + deep + "}}", ""), {"header", "nested"});
}

TEST_F(Safetensors, SaysThatAFileIsNotThere) {
  expect_error(ErrorKind::kMissingData, {"model.safetensors"}, [&] { SafetensorsFile file(path_); });
}

}  // namespace
}  // namespace dynslice
