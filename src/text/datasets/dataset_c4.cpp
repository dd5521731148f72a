// The English part of C4 (allenai/c4): files of one JSON object a line, compressed by gzip, of which the first
// documents are read.
#include "dynslice/hub/hub.h"
#include "dynslice/support/error.h"
#include "dynslice/support/json.h"
#include "text/datasets/gzip_lines.h"
#include "text/datasets/json_lines.h"
#include "text/datasets/named_dataset.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

constexpr const char* kC4Repo = "allenai/c4";
// The evaluation of GPTQ and of what follows it: the first 1100 documents of the first validation file, and of the
// tokens of those the first 256 windows.
constexpr int64_t kEvaluatedDocuments = 1100, kEvaluatedWindows = 256;
// Enough for 1024 windows of 2048 tokens.
constexpr int64_t kTrainingDocuments = 4400;
// The longest documents of C4 have about 1 MB.
constexpr size_t kMaxLineBytes = size_t{16} << 20;
constexpr size_t kMaxTextBytes = size_t{256} << 20;

NamedSplit c4_split(const std::string& name, const std::string& file) {
  NamedSplit split{name, {}};
  for (const fs::path folder : {"c4", "c4/en", "en", ""}) {
    for (const char* ending : {".json.gz", ".json"}) split.files.push_back(folder / (file + ending));
  }
  return split;
}

std::string join_documents(const fs::path& path, int64_t documents) {
  GzipLines lines(path, kMaxLineBytes);
  std::string text;
  int64_t found = 0;
  while (found < documents) {
    const auto line = lines.next();
    if (!line) break;
    if (line->find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = path.string() + ": line " + std::to_string(lines.number());
    const Json row = parse_json(*line, where);
    if (found++ > 0) text += ' ';
    text += text_of_row(row, where);
    if (text.size() > kMaxTextBytes) {
      throw_error(ErrorKind::kBadInput, where, ": the first ", found, " documents have more than ", kMaxTextBytes,
                  " bytes; this is not a file of C4");
    }
  }
  if (found == 0) {
    throw_error(ErrorKind::kBadInput, path.string(),
                ": has no lines; expected one JSON object with \"text\" a line, as the files of allenai/c4 have");
  }
  return text;
}

}  // namespace

NamedDataset c4_dataset() {
  NamedDataset dataset;
  dataset.name = "c4";
  dataset.splits = {c4_split("validation", "c4-validation.00000-of-00008"),
                    c4_split("train", "c4-train.00000-of-01024")};
  dataset.evaluated_split = "validation";
  dataset.evaluated_windows = kEvaluatedWindows;
  dataset.download = [](const NamedSplit& split, ProgressSink& progress) {
    const std::string file = (fs::path("en") / split.files.front().filename()).string();
    return hub_file(HubOptions::from_environment(), HubRepoKind::kDataset, HubId{kC4Repo, "main"}, file, progress);
  };
  dataset.read = [](const fs::path& path, const NamedSplit& split) {
    return join_documents(path, split.name == "train" ? kTrainingDocuments : kEvaluatedDocuments);
  };
  return dataset;
}

}  // namespace dynslice
