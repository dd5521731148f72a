#include "text/datasets/named_dataset.h"

#include <gmock/gmock.h>
#include <zlib.h>

#include "dynslice/support/files.h"
#include "dynslice/support/hash.h"
#include "text/datasets/gzip_lines.h"
#include "unit/text/dataset_fixture.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr const char* kC4 = "c4-validation.00000-of-00008.json";

class NamedDatasetTest : public DatasetTest {
 protected:
  fs::path write_gzip(const fs::path& name, const std::string& content) const {
    const fs::path path = folder_ / name;
    fs::create_directories(path.parent_path());
    const gzFile file = gzopen(path.c_str(), "wb");
    EXPECT_EQ(gzwrite(file, content.data(), static_cast<unsigned>(content.size())), static_cast<int>(content.size()));
    EXPECT_EQ(gzclose(file), Z_OK);
    return path;
  }
};

std::string documents(int64_t count) {
  std::string lines;
  for (int64_t i = 0; i < count; ++i) lines += "{\"text\":\"document " + std::to_string(i) + "\",\"url\":\"u\"}\n";
  return lines;
}

std::string joined(int64_t count) {
  std::string text;
  for (int64_t i = 0; i < count; ++i) text += (i > 0 ? " document " : "document ") + std::to_string(i);
  return text;
}

TEST_F(NamedDatasetTest, PtbIsItsLinesWithoutSpacesAroundThemJoinedByOne) {
  const fs::path path = write("data/ptb/ptb.test.txt", " no it was n't black monday \n but <unk> N \n");
  const TextSource source = load("ptb");
  EXPECT_EQ(source.text, "no it was n't black monday but <unk> N");
  EXPECT_EQ(source.name, "ptb");
  EXPECT_EQ(source.split, "test");
  EXPECT_EQ(source.path, path);
  EXPECT_EQ(source.usual_windows, 0);
}

TEST_F(NamedDatasetTest, PtbOfCalibrationFallsBackToValidation) {
  write("data/ptb.valid.txt", " a b \n");
  const TextSource source = load("ptb", TextUse::kCalibration);
  EXPECT_EQ(source.text, "a b");
  EXPECT_EQ(source.notice, "training split of ptb is not at hand: calibrating on its validation split");
}

TEST_F(NamedDatasetTest, PtbThatIsMissingSaysWhichFileToPutWhere) {
  const auto error = load_error("ptb");
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::kMissingData);
  EXPECT_THAT(error->what(), AllOf(HasSubstr("ptb/ptb.test.txt"), HasSubstr("--data-dir")));
}

TEST_F(NamedDatasetTest, C4IsTheFirst1100DocumentsJoinedByASpace) {
  // What comes after them is not even looked at.
  const fs::path path = write_gzip(fs::path("data/c4") / (std::string(kC4) + ".gz"), documents(1100) + "broken\n");
  const TextSource source = load("c4");
  EXPECT_EQ(source.text, joined(1100));
  EXPECT_EQ(source.split, "validation");
  EXPECT_EQ(source.usual_windows, 256);
  EXPECT_EQ(source.sha256, sha256(read_file(path)));
}

TEST_F(NamedDatasetTest, C4OfFewerDocumentsIsAllOfThem) {
  write_gzip(fs::path("data/en") / (std::string(kC4) + ".gz"), documents(3));
  EXPECT_EQ(load("c4:validation").text, joined(3));
}

TEST_F(NamedDatasetTest, C4MayBeDecompressedAlready) {
  write(fs::path("data/c4/en") / kC4, documents(2) + "\n");
  EXPECT_EQ(load("c4").text, joined(2));
}

TEST_F(NamedDatasetTest, C4OfCalibrationIsTheFirst4400TrainingDocuments) {
  write_gzip("data/c4/c4-train.00000-of-01024.json.gz", documents(4500));
  const TextSource source = load("c4", TextUse::kCalibration);
  EXPECT_EQ(source.text, joined(4400));
  EXPECT_EQ(source.split, "train");
  EXPECT_EQ(source.usual_windows, 0);
}

TEST_F(NamedDatasetTest, C4HasNoTestSplit) {
  const auto error = load_error("c4:test");
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::kUsage);
  EXPECT_THAT(error->what(), AllOf(HasSubstr("c4:test"), HasSubstr("c4 (validation, train)")));
}

TEST_F(NamedDatasetTest, C4InTheHubsCacheIsTakenFromThere) {
  const std::string commit(40, 'a');
  const fs::path repo = "hf/hub/datasets--allenai--c4";
  write(repo / "refs/main", commit);
  write_gzip(repo / "snapshots" / commit / "en" / (std::string(kC4) + ".gz"), documents(2));
  EXPECT_EQ(load("c4").text, joined(2));
}

TEST_F(NamedDatasetTest, C4ThatIsMissingSaysWhichFileToPutWhere) {
  const auto error = load_error("c4");
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::kMissingData);
  EXPECT_THAT(error->what(), AllOf(HasSubstr("c4/c4-validation.00000-of-00008.json.gz"), HasSubstr("allenai/c4")));
}

TEST_F(NamedDatasetTest, LineOfC4WithoutTextIsNamed) {
  for (const char* line : {"{\"txt\":\"a\"}", "{\"text\":3}", "[]", "{\"text\":\"a\""}) {
    const fs::path path = write_gzip(fs::path("data") / (std::string(kC4) + ".gz"), documents(2) + line + "\n");
    const auto error = load_error("c4");
    ASSERT_TRUE(error) << line;
    EXPECT_EQ(error->kind(), ErrorKind::kBadInput);
    EXPECT_THAT(error->what(), AllOf(HasSubstr(path.string()), HasSubstr("line 3")));
  }
}

TEST_F(NamedDatasetTest, C4CutAtAnyByteIsBroken) {
  const fs::path path = write_gzip(fs::path("data") / (std::string(kC4) + ".gz"), documents(20));
  const std::string whole = read_file(path);
  for (size_t length = 0; length < whole.size(); ++length) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << whole.substr(0, length);
    const auto error = load_error("c4");
    ASSERT_TRUE(error) << length << " bytes";
    EXPECT_EQ(error->kind(), ErrorKind::kBadInput) << length << " bytes";
  }
}

TEST_F(NamedDatasetTest, C4WithAnyByteFlippedGivesTheTextOrAnError) {
  const fs::path path = write_gzip(fs::path("data") / (std::string(kC4) + ".gz"), documents(20));
  const std::string whole = read_file(path);
  for (size_t i = 0; i < whole.size(); ++i) {
    std::string broken = whole;
    broken[i] = static_cast<char>(broken[i] ^ 0x55);
    std::ofstream(path, std::ios::binary | std::ios::trunc) << broken;
    try {
      EXPECT_EQ(load("c4").text, joined(20)) << "byte " << i;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kBadInput) << "byte " << i;
    }
  }
}

TEST_F(NamedDatasetTest, LinesLongerThanTheLimitAreRefused) {
  const fs::path path = write_gzip("lines.gz", "short\n" + std::string(1 << 20, 'x') + "\nlast");
  GzipLines lines(path, 1 << 20);
  EXPECT_EQ(lines.next(), "short");
  EXPECT_EQ(lines.next()->size(), size_t{1} << 20);
  EXPECT_EQ(lines.next(), "last");
  EXPECT_EQ(lines.next(), std::nullopt);
  EXPECT_EQ(lines.number(), 3);
  GzipLines fewer(path, (1 << 20) - 1);
  EXPECT_EQ(fewer.next(), "short");
  const auto error = error_of([&] { fewer.next(); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::kBadInput);
  EXPECT_THAT(error->what(), HasSubstr("line 2"));
}

}  // namespace
}  // namespace dynslice
