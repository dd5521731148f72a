#include "dynslice/text/datasets/instructions.h"

#include <string_view>

#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/json.h"
#include "text/datasets/json_lines.h"

namespace dynslice {
namespace {

std::string text_at(const Json& entry, const char* key, bool required, const std::string& where) {
  const bool is_there = entry.contains(key) && !entry[key].is_null();
  if (!is_there && !required) return {};
  if (!is_there || !entry[key].is_string())
    throw_error(ErrorKind::kBadInput, where, ": expected a string under the key \"", key, "\"");
  return entry[key].get<std::string>();
}

// The words that Alpaca's models were trained with.
std::string prompt_of(const std::string& instruction, const std::string& input) {
  const std::string task =
      input.empty() ? "Below is an instruction that describes a task. Write a response that appropriately completes "
                      "the request.\n\n"
                    : "Below is an instruction that describes a task, paired with an input that provides further "
                      "context. Write a response that appropriately completes the request.\n\n";
  return task + "### Instruction:\n" + instruction + "\n\n" + (input.empty() ? "" : "### Input:\n" + input + "\n\n") +
         "### Response:\n";
}

Instruction read_entry(const Json& entry, const std::string& where) {
  if (!entry.is_object())
    throw_error(ErrorKind::kBadInput, where, ": expected an object with \"instruction\" and \"output\"");
  const std::string instruction = text_at(entry, "instruction", true, where);
  return {prompt_of(instruction, text_at(entry, "input", false, where)), text_at(entry, "output", true, where)};
}

std::vector<Instruction> read_lines(std::string_view content, const std::string& path) {
  std::vector<Instruction> entries;
  for_each_json_line(content, path,
                     [&](const Json& row, const std::string& where) { entries.push_back(read_entry(row, where)); });
  return entries;
}

std::vector<Instruction> read_list(const std::string& content, const std::string& path) {
  const Json list = parse_json(content, path);
  if (!list.is_array()) throw_error(ErrorKind::kBadInput, path, ": expected a list of objects");
  std::vector<Instruction> entries;
  for (size_t i = 0; i < list.size(); ++i)
    entries.push_back(read_entry(list[i], path + ": entry " + std::to_string(i)));
  return entries;
}

}  // namespace

std::vector<Instruction> load_instructions(const std::filesystem::path& file) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(file, error))
    throw_error(ErrorKind::kMissingData, file.string(), ": there is no such file; give a JSON list of instructions");
  const std::string content = read_file(file);
  std::vector<Instruction> entries =
      file.extension() == ".jsonl" ? read_lines(content, file.string()) : read_list(content, file.string());
  if (entries.empty()) throw_error(ErrorKind::kBadInput, file.string(), ": has no entries");
  return entries;
}

}  // namespace dynslice
