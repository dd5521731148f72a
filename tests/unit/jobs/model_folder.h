// A small model in a folder, with a tokenizer of bytes and a text beside it: what a job is given.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "dynslice/checkpoint/checkpoint_writer.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/model/config.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/support/json.h"
#include "dynslice/support/token_windows.h"
#include "text/tokenizer/pretokenizer.h"
#include "tiny_model.h"
#include "unit/support/scoped_variable.h"
#include "unit/support/temporary_folder.h"

namespace dynslice::testing {

// Every byte is a token, whose id it is.
inline std::string byte_tokenizer() {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte)
    vocab[std::string(byte_level_character(static_cast<unsigned char>(byte)))] = byte;
  const Json tokenizer = {{"version", "1.0"},
                          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}},
                          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
                          {"decoder", {{"type", "ByteLevel"}}}};
  return tokenizer.dump();
}

// Words of random letters, the same in every run.
inline std::string random_words(size_t bytes) {
  std::string text;
  uint32_t state = 1;
  while (text.size() < bytes) {
    state = state * 1664525U + 1013904223U;
    const uint32_t letter = (state >> 24) % 32;
    text += letter < 26 ? static_cast<char>('a' + letter) : ' ';
  }
  return text;
}

inline void write_model(const MemoryCheckpoint& model, const std::filesystem::path& folder) {
  CheckpointWriter writer(folder, checkpoint_tensors(model.config(), at::kFloat), false);
  for (const TensorInfo& tensor : model.tensors())
    writer.write(tensor.name, model.load(tensor.name, tensor.shape, at::kFloat));
  writer.write_text("config.json", to_text(write_config(model.config(), "float32")));
  writer.write_text("tokenizer.json", byte_tokenizer());
  writer.commit();
}

inline std::string content_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// An environment in which jobs keep journals and results in `folder`, and find data nowhere else.
class OwnCache {
 public:
  explicit OwnCache(const std::filesystem::path& folder) : cache_("DYNSLICE_CACHE", folder.c_str()) {}

 private:
  ScopedVariable cache_;
  ScopedVariable data_{"DYNSLICE_DATA_DIR", nullptr}, offline_{"HF_HUB_OFFLINE", "1"};
};

class ModelFolder {
 public:
  explicit ModelFolder(uint64_t seed = 7, int64_t layers = 3) {
    TinyOptions options;
    options.layers = layers;
    options.vocab = 256;
    options.seed = seed;
    write_model(tiny_model(options), folder_ / "model");
    write_bytes(folder_ / "text.txt", random_words(1024));
  }

  std::filesystem::path operator/(const std::string& name) const { return folder_ / name; }
  std::string in(const std::string& name) const { return (folder_ / name).string(); }

  CommonOptions common(const std::string& verb) const {
    CommonOptions options;
    options.model = in("model");
    options.device = "cpu";
    options.dtype = "fp32";
    options.threads = 1;  // more would wait for each other longer than they compute
    options.verb = verb;
    options.command_line = {"dynslice", verb};
    return options;
  }
  TextOptions text() const {
    TextOptions options;
    options.spec = in("text.txt");
    options.samples = 8;
    options.seqlen = 32;
    return options;
  }
  // The tokens that `text` stands for: every byte is one.
  TokenWindows windows() const {
    const std::string bytes = content_of(folder_ / "text.txt");
    TokenWindows windows{{}, text().samples, text().seqlen};
    for (int64_t i = 0; i < windows.tokens(); ++i)
      windows.ids.push_back(static_cast<unsigned char>(bytes[static_cast<size_t>(i)]));
    return windows;
  }
  // The names of what lies in the folder, in order.
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path()))
      names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }
  // What jobs kept for later runs.
  std::vector<std::string> kept() const {
    std::vector<std::string> names;
    std::error_code none_is_there;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(cache_folder_.path(), none_is_there)) {
      if (entry.is_regular_file()) names.push_back(entry.path().filename().string());
    }
    return names;
  }

 private:
  TemporaryFolder folder_, cache_folder_;
  OwnCache cache_{cache_folder_.path()};
};

// Questions of piqa below a data folder. The first one's right answer is its second.
inline void write_piqa(const std::filesystem::path& data) {
  std::filesystem::create_directories(data / "piqa");
  write_bytes(data / "piqa" / "validation.jsonl",
              R"({"goal": "open it", "sol1": "pull", "sol2": "push", "label": 1})"
              "\n"
              R"({"goal": "cut it", "sol1": "take a knife", "sol2": "take a spoon", "label": 0})"
              "\n"
              R"({"goal": "dry it", "sol1": "wring", "sol2": "hang it up", "label": 1})"
              "\n"
              R"({"goal": "fix it", "sol1": "glue", "sol2": "wait", "label": 0})"
              "\n");
}

}  // namespace dynslice::testing
