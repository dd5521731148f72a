#include "dynslice/text/datasets/dataset.h"

#include <algorithm>
#include <cctype>
#include <string_view>
#include <system_error>

#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/hash.h"
#include "dynslice/support/json.h"
#include "text/datasets/json_lines.h"
#include "text/datasets/named_dataset.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

// The "text" of each line, joined with "\n\n".
std::string text_of_jsonl(std::string_view content, const std::string& path) {
  std::string text;
  bool found = false;
  for_each_json_line(content, path, [&](const Json& row, const std::string& where) {
    if (found) text += "\n\n";
    text += text_of_row(row, where);
    found = true;
  });
  if (!found) throw_error(ErrorKind::kBadInput, path, ": has no lines; expected one JSON object with \"text\" a line");
  return text;
}

bool has_extension(const fs::path& path, std::string_view wanted) {
  const std::string extension = path.extension().string();
  return std::equal(extension.begin(), extension.end(), wanted.begin(), wanted.end(),
                    [](unsigned char a, unsigned char b) { return std::tolower(a) == b; });
}

TextSource load_file(const fs::path& path) {
  const std::string content = read_file(path);
  TextSource source;
  source.name = path.filename().string();
  source.path = path;
  source.sha256 = sha256(content);
  source.text = has_extension(path, ".jsonl") ? text_of_jsonl(content, path.string()) : content;
  return source;
}

TextSource load_split(const NamedDataset& dataset, const NamedSplit& split, const fs::path& path) {
  TextSource source;
  source.name = dataset.name;
  source.split = split.name;
  source.path = path;
  source.sha256 = sha256_of_file(path);
  source.text = dataset.read(path, split);
  return source;
}

// Calibration without a split: training where it is at hand, else validation rather than a download.
TextSource load_for_calibration(const NamedDataset& dataset, const fs::path& data_dir, ProgressSink& progress) {
  const NamedSplit& train = *dataset.find_split("train");
  if (const auto path = find_split_file(train, data_dir)) return load_split(dataset, train, *path);
  const NamedSplit& validation = *dataset.find_split("validation");
  if (const auto path = find_split_file(validation, data_dir)) {
    TextSource source = load_split(dataset, validation, *path);
    source.notice = "training split of " + dataset.name + " is not at hand: calibrating on its validation split";
    return source;
  }
  return load_split(dataset, train, require_split_file(dataset, train, data_dir, progress));
}

TextSource load_named(const NamedDataset& dataset, const std::optional<std::string>& split_name, TextUse use,
                      const fs::path& data_dir, ProgressSink& progress) {
  if (!split_name && use == TextUse::kCalibration) return load_for_calibration(dataset, data_dir, progress);
  const NamedSplit* split = dataset.find_split(split_name.value_or(dataset.evaluated_split));
  if (split == nullptr) {
    throw_error(ErrorKind::kUsage, "\"", dataset.name, ":", *split_name, "\": no such split; ",
                describe_named_datasets());
  }
  TextSource source = load_split(dataset, *split, require_split_file(dataset, *split, data_dir, progress));
  if (use == TextUse::kEvaluation) source.usual_windows = dataset.evaluated_windows;
  return source;
}

bool looks_like_path(const std::string& spec) {
  return spec.find('/') != std::string::npos || fs::path(spec).has_extension();
}

}  // namespace

TextSource load_text(const std::string& spec, TextUse use, const fs::path& data_dir, ProgressSink& progress) {
  const auto colon = spec.find(':');
  for (const NamedDataset& dataset : named_datasets()) {
    if (spec.substr(0, colon) != dataset.name) continue;
    const auto split = colon == std::string::npos ? std::nullopt : std::optional(spec.substr(colon + 1));
    return load_named(dataset, split, use, data_dir, progress);
  }
  std::error_code error;
  if (!spec.empty() && fs::exists(spec, error)) return load_file(spec);
  if (looks_like_path(spec)) {
    throw_error(ErrorKind::kMissingData, spec,
                ": there is no such file; give the path of a text file, or a data set: ", describe_named_datasets());
  }
  throw_error(ErrorKind::kUsage, "\"", spec, "\" is no data set; ", describe_named_datasets(),
              ", and the path of a text file works too");
}

}  // namespace dynslice
