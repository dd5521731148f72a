#include "jobs/model_card.h"

#include <algorithm>
#include <array>
#include <map>
#include <string_view>
#include <vector>

#include "dynslice/formats/gguf/gguf_file.h"
#include "dynslice/hub/hub.h"
#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/support/files.h"
#include "dynslice/support/format.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxBytes = uint64_t{4} << 20;  // of a card or a licence
constexpr std::array kLicenceFiles = {"LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md"};
constexpr std::array kLicenceKeys = {"license", "license_name", "license_link"};

// What stands for itself in YAML: names, ids and addresses.
bool is_plain(std::string_view value) {
  const auto may_stand = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           std::string_view("._/:@+-").find(c) != std::string_view::npos;
  };
  return !value.empty() && value.size() <= 256 && std::ranges::all_of(value, may_stand) &&
         value.find(": ") == std::string_view::npos && value.front() != '-' && value.front() != '@';
}

std::string trimmed(std::string_view text) {
  const auto is_blank = [](char c) { return c == ' ' || c == '\t' || c == '\r'; };
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  const bool is_quoted =
      text.size() >= 2 && (text.front() == '"' || text.front() == '\'') && text.back() == text.front();
  return std::string(is_quoted ? text.substr(1, text.size() - 2) : text);
}

// Of a card's head the keys with plain values; lists and everything else are left out.
std::map<std::string, std::string> head_of_card(const fs::path& card) {
  std::map<std::string, std::string> head;
  std::error_code error;
  if (!fs::is_regular_file(card, error) || fs::file_size(card, error) > kMaxBytes || error) return head;
  const std::string text = read_file(card, kMaxBytes);
  size_t begin = 0;
  for (bool is_first = true; begin < text.size(); is_first = false) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = trimmed(std::string_view(text).substr(begin, end - begin));
    const bool is_indented = begin < text.size() && text[begin] == ' ';
    begin = end + 1;
    if (line == "---" && is_first) continue;
    if (is_first || line == "---") break;
    const size_t colon = line.find(':');
    if (colon == std::string::npos || is_indented) continue;
    const std::string value = trimmed(std::string_view(line).substr(colon + 1));
    if (is_plain(value)) head[line.substr(0, colon)] = value;
  }
  return head;
}

// Base model and licence, as far as they are known.
std::map<std::string, std::string> known_of_source(const CardSubject& subject, const OrderedJson& record) {
  const fs::path& path = subject.source.path();
  std::map<std::string, std::string> known;
  if (path.extension() == ".gguf") {
    const GgufFile file(path);
    if (file.has("general.license")) known["license"] = file.string("general.license");
    std::erase_if(known, [](const auto& entry) { return !is_plain(entry.second); });
  } else {
    known = head_of_card(path / "README.md");
  }
  const std::string asked = record.at("run").value("model_asked", "");
  std::error_code error;
  if (subject.kind == CardKind::kAdapter)
    known.erase("base_model");  // it belongs to the source, not to what that is of
  if (const auto id = parse_hub_id(asked); id && !fs::exists(asked, error)) known["base_model"] = id->repo;
  return known;
}

std::string relation(CardKind kind) {
  switch (kind) {
    case CardKind::kFinetune:
      return "finetune";
    case CardKind::kQuantized:
      return "quantized";
    case CardKind::kAdapter:
      return "adapter";
  }
  return "";
}

// "depth drop" as a tag.
std::string tag_of(std::string method) {
  std::ranges::replace(method, ' ', '-');
  return method;
}

std::string describe_head(const CardSubject& subject, const OrderedJson& record,
                          const std::map<std::string, std::string>& known) {
  std::string head = "---\n";
  const auto add = [&](const std::string& key, const std::string& value) { head += key + ": " + value + "\n"; };
  const bool has_base = known.contains("base_model");
  if (has_base) add("base_model", known.at("base_model"));
  if (has_base) add("base_model_relation", relation(subject.kind));
  add("library_name", subject.kind == CardKind::kAdapter ? "peft" : "transformers");
  add("pipeline_tag", subject.config.is_wrapped() ? "image-text-to-text" : "text-generation");
  head += "tags:\n- dynslice\n";
  std::vector<std::string> tags;
  for (const OrderedJson& step : steps_of(record)) {
    const std::string tag = tag_of(step.value("method", ""));
    if (is_plain(tag) && std::ranges::find(tags, tag) == tags.end()) tags.push_back(tag);
  }
  for (const std::string& tag : tags) head += "- " + tag + "\n";
  for (const char* key : kLicenceKeys) {
    if (known.contains(key)) add(key, known.at(key));
  }
  return head + "---\n";
}

// "| parameters | 134.5 M | 100.9 M | -25.0% |"
std::string describe_sizes(const OrderedJson& record) {
  std::string rows;
  const OrderedJson change = change_of(steps_of(record));
  const auto row = [&](const char* key, const char* name, const auto& shown) {
    if (!change.contains(key) || !change.at(key).contains("before") || !change.at(key).contains("after")) return;
    const auto before = change.at(key).at("before").get<int64_t>(), after = change.at(key).at("after").get<int64_t>();
    rows += std::string("| ") + name + " | " + shown(before) + " | " + shown(after) + " | " +
            format_change(static_cast<double>(before), static_cast<double>(after)) + " |\n";
  };
  row("layers", "layers", [](int64_t value) { return std::to_string(value); });
  row("parameters", "parameters", format_count);
  row("bytes", "bytes", [](int64_t value) { return format_bytes(static_cast<uint64_t>(value)); });
  row("flops_per_token", "operations a token", format_count);
  return rows.empty() ? "" : "| | before | after | change |\n| --- | --- | --- | --- |\n" + rows + "\n";
}

std::string describe_commands(const OrderedJson& record) {
  std::string text = "```sh\n";
  for (const OrderedJson& step : steps_of(record)) {
    if (!step.contains("command_line")) continue;
    auto words = job_command_line(step.at("command_line").get<std::vector<std::string>>(), /*all_options=*/false);
    if (!words.empty()) words.front() = "dynslice";
    text += shell_line(words) + "\n";
  }
  return text + "```\n\n";
}

std::string describe_text(const OrderedJson& record) {
  for (const char* key : {"calibration", "text"}) {
    if (!record.contains(key) || !record.at(key).is_object()) continue;
    const OrderedJson& text = record.at(key);
    std::string told = "Text: " + text.value("name", "") + (text.value("split", "").empty() ? "" : " (") +
                       text.value("split", "") + (text.value("split", "").empty() ? "" : ")");
    if (text.contains("windows") && text.at("windows").is_number())
      told += ", " + std::to_string(text.at("windows").get<int64_t>()) + " windows of " +
              std::to_string(text.value("seqlen", int64_t{0})) + " tokens";
    return told + ", SHA-256 `" + text.value("sha256", "") + "`.\n\n";
  }
  return "";
}

// The path of the model that the first command was given.
std::string original_of(const OrderedJson& record) {
  const OrderedJson steps = steps_of(record);
  return steps.front().value("model", record.at("run").value("model", ""));
}

std::string describe_loading(const CardSubject& subject, const OrderedJson& record,
                             const std::map<std::string, std::string>& known) {
  const auto literal = [](const std::string& text) {
    return OrderedJson(text).dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
  };
  const std::string folder = subject.output.filename().string(), name = literal(folder);
  const bool is_ours = !subject.config.is_ordinary();
  const std::string loader = subject.config.is_wrapped() ? "AutoModelForImageTextToText" : "AutoModelForCausalLM";
  const std::string trust = is_ours ? ", trust_remote_code=True" : "";
  if (subject.kind == CardKind::kAdapter) {
    const std::string base =
        literal(known.contains("base_model") ? known.at("base_model") : record.at("run").value("model", ""));
    return "```python\nfrom peft import PeftModel\nfrom transformers import " + loader + "\n\nmodel = " + loader +
           ".from_pretrained(" + base + trust + ")\nmodel = PeftModel.from_pretrained(model, " + name + ")\n```\n\n";
  }
  std::string text = "```python\nfrom transformers import " + loader + ", AutoTokenizer\n\nmodel = " + loader +
                     ".from_pretrained(" + name + trust + ")\ntokenizer = AutoTokenizer.from_pretrained(" + name +
                     ")\n```\n\n";
  if (is_ours) text += "Its layers have shapes of their own: the modeling code lies beside the weights.\n";
  if (record.value("format", "") == "pack-quantized")
    text += "transformers wants `compressed-tensors` installed for packed weights.\n";
  return text + "`dynslice export " + shell_line({folder}) +
         " --gguf` writes a GGUF file for llama.cpp where the shapes allow it.\n\n";
}

}  // namespace

std::string model_card(const CardSubject& subject, const OrderedJson& record) {
  const std::map<std::string, std::string> known = known_of_source(subject, record);
  const std::string name = subject.output.filename().string();
  const std::string base =
      known.contains("base_model") ? known.at("base_model") : subject.source.path().filename().string();
  std::string card = describe_head(subject, record, known);
  card += "\n# " + name + "\n\nMade of " + base + " by dynslice " + record.at("run").value("dynslice", "") + " (" +
          record.value("method", "") + ").\n\n";
  card += describe_sizes(record);
  card += "## How it was made\n\n" + describe_commands(record) + describe_text(record);
  card +=
      "## What it costs\n\nPerplexity and divergence from the model that it was made from, on text of your choice:\n\n"
      "```sh\ndynslice compare " +
      shell_line({known.contains("base_model") ? base : original_of(record), name}) + " --kl\n```\n\n";
  card += "## How to load it\n\n" + describe_loading(subject, record, known);
  return card + "`dynslice.json` beside this says all of it to programs.\n";
}

void write_record(const CardSubject& subject, const OrderedJson& record, CheckpointWriter& writer) {
  for (const char* name : kLicenceFiles) {
    const fs::path file = subject.source.path() / name;
    std::error_code error;
    if (fs::is_regular_file(file, error) && fs::file_size(file, error) <= kMaxBytes && !error)
      writer.write_text(name, read_file(file, kMaxBytes));
  }
  writer.write_text("README.md", model_card(subject, record));
  writer.write_text("dynslice.json", to_text(record));
}

}  // namespace dynslice
