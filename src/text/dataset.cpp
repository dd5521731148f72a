#include "dynslice/text/dataset.h"

#include <algorithm>
#include <cctype>
#include <string_view>
#include <system_error>

#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/hash.h"
#include "dynslice/support/json.h"
#include "text/dataset_wikitext.h"
#include "text/json_lines.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWikitext = "wikitext2";
constexpr const char* kKnownNames = "the known data set is wikitext2 (splits test, validation, train)";

// The "text" of each line, joined with "\n\n".
std::string text_of_jsonl(std::string_view content, const std::string& path) {
  std::string text;
  bool found = false;
  for_each_json_line(content, path, [&](const Json& row, const std::string& where) {
    if (!row.is_object() || !row.contains("text") || !row["text"].is_string()) {
      throw_error(ErrorKind::kBadInput, where, ": expected an object with a string under the key \"text\"");
    }
    if (found) text += "\n\n";
    text += row["text"].get_ref<const std::string&>();
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

TextSource load_wikitext(const std::string& split, const fs::path& path, const std::string& notice) {
  const std::string content = read_file(path);
  return {kWikitext, split, path, sha256(content), join_wikitext(content), notice};
}

// Calibration without a split: training where it is at hand, else validation rather than a download.
TextSource load_calibration_wikitext(const fs::path& data_dir, ProgressSink& progress) {
  if (const auto path = find_wikitext("train", data_dir)) return load_wikitext("train", *path, "");
  if (const auto path = find_wikitext("validation", data_dir)) {
    return load_wikitext("validation", *path,
                         "training split of wikitext2 is not at hand: calibrating on its validation split");
  }
  return load_wikitext("train", download_wikitext("train", data_dir, progress), "");
}

TextSource load_wikitext_split(const std::string& split, const fs::path& data_dir, ProgressSink& progress) {
  const auto path = find_wikitext(split, data_dir);
  return load_wikitext(split, path ? *path : download_wikitext(split, data_dir, progress), "");
}

bool looks_like_path(const std::string& spec) {
  return spec.find('/') != std::string::npos || fs::path(spec).has_extension();
}

}  // namespace

TextSource load_text(const std::string& spec, TextUse use, const fs::path& data_dir, ProgressSink& progress) {
  const auto colon = spec.find(':');
  if (spec.substr(0, colon) == kWikitext) {
    if (colon == std::string::npos && use == TextUse::kCalibration)
      return load_calibration_wikitext(data_dir, progress);
    const std::string split = colon == std::string::npos ? "test" : spec.substr(colon + 1);
    if (is_wikitext_split(split)) return load_wikitext_split(split, data_dir, progress);
    throw_error(ErrorKind::kUsage, "\"", spec, "\": no such split; ", kKnownNames);
  }
  std::error_code error;
  if (!spec.empty() && fs::exists(spec, error)) return load_file(spec);
  if (looks_like_path(spec)) {
    throw_error(ErrorKind::kMissingData, spec,
                ": there is no such file; give the path of a text file, or a data set: ", kKnownNames);
  }
  throw_error(ErrorKind::kUsage, "\"", spec, "\" is no data set; ", kKnownNames,
              ", and the path of a text file works too");
}

}  // namespace dynslice
