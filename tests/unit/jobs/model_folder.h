// A small model in a folder, with a tokenizer of bytes and a text beside it: what a job is given.
#pragma once

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
#include "text/tokenizer/pretokenizer.h"
#include "tiny_model.h"
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

class ModelFolder {
 public:
  explicit ModelFolder(uint64_t seed = 7) {
    TinyOptions options;
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
  // The names of what lies in the folder.
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path()))
      names.push_back(entry.path().filename().string());
    return names;
  }

 private:
  TemporaryFolder folder_;
};

inline std::string content_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace dynslice::testing
