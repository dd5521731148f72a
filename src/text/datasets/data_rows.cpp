#include "dynslice/text/datasets/data_rows.h"

#include <charconv>
#include <optional>
#include <system_error>

#include "dynslice/hub/hub_cache.h"
#include "dynslice/support/environment.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/hash.h"
#include "text/datasets/dataset_server.h"
#include "text/datasets/json_lines.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

fs::path dataset_cache() { return cache_folder() / "datasets"; }

std::optional<fs::path> find_file(const RowSource& source, const fs::path& data_dir) {
  std::error_code error;
  if (!data_dir.empty() && !fs::is_directory(data_dir, error)) {
    throw_error(ErrorKind::kMissingData, "--data-dir ", data_dir.string(),
                ": is not a folder; name the folder that holds ", source.files.front());
  }
  for (const fs::path& folder : {data_dir, fs::path(environment("DYNSLICE_DATA_DIR")), dataset_cache()}) {
    if (folder.empty()) continue;
    for (const std::string& file : source.files) {
      if (fs::is_regular_file(folder / file, error)) return folder / file;
    }
  }
  return std::nullopt;
}

std::string file_names(const RowSource& source) {
  std::string names;
  for (const std::string& file : source.files) names += (names.empty() ? "" : " or ") + file;
  return names;
}

std::string places(const fs::path& data_dir) {
  const std::string named = environment("DYNSLICE_DATA_DIR");
  return (data_dir.empty() ? "--data-dir (not given)" : "--data-dir " + data_dir.string()) + ", DYNSLICE_DATA_DIR " +
         (named.empty() ? "(not set)" : named) + ", the cache " + dataset_cache().string();
}

fs::path download(const RowSource& source, const fs::path& data_dir, ProgressSink& progress) {
  std::string lines;
  try {
    lines = fetch_rows({source.dataset, source.config, source.split}, progress);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kMissingData) throw;
    throw_error(ErrorKind::kMissingData, source.name, ": ", file_names(source), " is in none of ", places(data_dir),
                "; put it into one of these folders (docs/evaluation.md says what it looks like), or get it from the "
                "hub, which failed: ",
                error.what());
  }
  const fs::path path = dataset_cache() / source.files.back();
  make_folder(path.parent_path());
  write_file_atomically(path, lines);
  return path;
}

// "valid-labels.lst" beside "valid.jsonl", when it is there.
std::optional<fs::path> labels_of(const fs::path& path) {
  fs::path labels = path.parent_path() / (path.stem().string() + "-labels.lst");
  std::error_code error;
  return fs::is_regular_file(labels, error) ? std::optional(labels) : std::nullopt;
}

std::string_view without_spaces(std::string_view line) {
  const size_t first = line.find_first_not_of(" \t\r");
  return first == std::string_view::npos ? std::string_view()
                                         : line.substr(first, line.find_last_not_of(" \t\r") - first + 1);
}

// One integer a line; an empty line at the end is none.
void add_labels(std::string_view content, const std::string& path, DataRows& data) {
  size_t line = 0;
  while (!content.empty()) {
    const size_t end = std::min(content.find('\n'), content.size());
    const std::string_view word = without_spaces(content.substr(0, end));
    content.remove_prefix(std::min(end + 1, content.size()));
    if (word.empty() && content.empty()) break;
    int64_t label = 0;
    const auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), label);
    if (error != std::errc() || stop != word.data() + word.size()) {
      throw_error(ErrorKind::kBadInput, path, ": line ", line + 1, ": expected an integer, found \"", word, "\"");
    }
    if (line < data.rows.size()) data.rows[line].value["label"] = label;
    ++line;
  }
  if (line == data.rows.size()) return;
  throw_error(ErrorKind::kBadInput, path, ": has ", line, " labels, but ", data.path.string(), " has ",
              data.rows.size(), " rows");
}

}  // namespace

DataRows load_rows(const RowSource& source, const fs::path& data_dir, ProgressSink& progress) {
  const auto found = find_file(source, data_dir);
  DataRows data;
  data.path = found ? *found : download(source, data_dir, progress);
  std::string content = read_file(data.path);
  for_each_json_line(content, data.path.string(), [&](const Json& row, const std::string& where) {
    if (!row.is_object())
      throw_error(ErrorKind::kBadInput, where, ": expected a JSON object, found a ", row.type_name());
    data.rows.push_back({row, where});
  });
  if (data.rows.empty())
    throw_error(ErrorKind::kBadInput, data.path.string(), ": has no rows; expected one JSON object a line");
  if (const auto labels = labels_of(data.path)) {
    const std::string text = read_file(*labels);
    add_labels(text, labels->string(), data);
    content += text;
  }
  data.sha256 = sha256(content);
  return data;
}

}  // namespace dynslice
