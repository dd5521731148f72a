// The Penn Treebank as Mikolov prepared it: one sentence a line, rare words replaced by <unk>, numbers by N.
#include <algorithm>
#include <string_view>

#include "dynslice/hub/hub_cache.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/json.h"
#include "text/datasets/dataset_server.h"
#include "text/datasets/json_lines.h"
#include "text/datasets/named_dataset.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

NamedSplit ptb_split(const std::string& name, const std::string& file) {
  return {name, {fs::path("ptb") / file, file}};
}

std::string_view trimmed(std::string_view line) {
  constexpr std::string_view kSpaces = " \t\r\n\v\f";
  const size_t first = line.find_first_not_of(kSpaces);
  if (first == std::string_view::npos) return {};
  return line.substr(first, line.find_last_not_of(kSpaces) - first + 1);
}

// A row is a line without the spaces around it; rows are joined with " ".
std::string join_rows(std::string_view raw) {
  std::string text;
  text.reserve(raw.size());
  for (bool first = true; !raw.empty(); first = false) {
    const size_t end = std::min(raw.find('\n'), raw.size());
    if (!first) text += ' ';
    text += trimmed(raw.substr(0, end));
    raw.remove_prefix(std::min(end + 1, raw.size()));
  }
  return text;
}

// The rows of ptb-text-only/ptb_text_only, which are those lines, kept in the cache as a file of them.
fs::path download_ptb(const NamedSplit& split, ProgressSink& progress) {
  const std::string rows = fetch_rows({"ptb-text-only/ptb_text_only", "penn_treebank", split.name}, progress);
  std::string lines;
  for_each_json_line(rows, "ptb-text-only/ptb_text_only, " + split.name,
                     [&](const Json& row, const std::string& where) {
                       const std::string sentence = JsonReader(row, where).string("sentence");
                       if (sentence.find('\n') != std::string::npos)
                         throw_error(ErrorKind::kBadInput, where, ": key \"sentence\": must be one line");
                       lines += sentence + "\n";
                     });
  const fs::path file = dataset_cache() / split.files.front();
  make_folder(file.parent_path());
  write_file_atomically(file, lines);
  return file;
}

}  // namespace

NamedDataset ptb_dataset() {
  NamedDataset dataset;
  dataset.name = "ptb";
  dataset.splits = {ptb_split("test", "ptb.test.txt"), ptb_split("validation", "ptb.valid.txt"),
                    ptb_split("train", "ptb.train.txt")};
  dataset.evaluated_split = "test";
  dataset.download = download_ptb;
  dataset.read = [](const fs::path& path, const NamedSplit&) { return join_rows(read_file(path)); };
  return dataset;
}

}  // namespace dynslice
