// Small checkpoints on disk, made without the library's own writer.
#pragma once

#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "unit/formats/gguf_builder.h"
#include "unit/support/temporary_folder.h"

namespace dynslice::testing {

using FixtureJson = nlohmann::ordered_json;

struct RawTensor {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

inline std::string float_bytes(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

inline std::vector<float> random_values(int64_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(static_cast<int>(engine() % 2001) - 1000) / 512.0F;
  return values;
}

// A safetensors file around a header that the caller may have made wrong.
inline std::string safetensors_bytes(const std::string& header, const std::string& data) {
  std::string file;
  append<uint64_t>(file, header.size());
  return file + header + data;
}

inline FixtureJson safetensors_header(const std::vector<RawTensor>& tensors) {
  FixtureJson header = FixtureJson::object();
  uint64_t offset = 0;
  for (const RawTensor& tensor : tensors) {
    header[tensor.name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + tensor.bytes.size()}}};
    offset += tensor.bytes.size();
  }
  return header;
}

inline std::string safetensors_bytes(const std::vector<RawTensor>& tensors) {
  std::string data;
  for (const RawTensor& tensor : tensors) data += tensor.bytes;
  return safetensors_bytes(safetensors_header(tensors).dump(), data);
}

// A llama of two layers: 12 tokens, width 8, two heads of 4, one key-value head, MLP of 6.
inline FixtureJson tiny_llama_config() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"vocab_size", 12},
          {"hidden_size", 8},
          {"intermediate_size", 6},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 2},
          {"num_key_value_heads", 1},
          {"hidden_act", "silu"},
          {"rms_norm_eps", 1e-5},
          {"max_position_embeddings", 64},
          {"tie_word_embeddings", false}};
}

inline std::vector<RawTensor> tiny_llama_tensors() {
  std::vector<RawTensor> tensors;
  unsigned seed = 1;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    const int64_t count = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
    tensors.push_back({name, "F32", std::move(shape), float_bytes(random_values(count, seed++))});
  };
  add("model.embed_tokens.weight", {12, 8});
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    add(layer + "input_layernorm.weight", {8});
    add(layer + "self_attn.q_proj.weight", {8, 8});
    add(layer + "self_attn.k_proj.weight", {4, 8});
    add(layer + "self_attn.v_proj.weight", {4, 8});
    add(layer + "self_attn.o_proj.weight", {8, 8});
    add(layer + "post_attention_layernorm.weight", {8});
    add(layer + "mlp.gate_proj.weight", {6, 8});
    add(layer + "mlp.up_proj.weight", {6, 8});
    add(layer + "mlp.down_proj.weight", {8, 6});
  }
  add("model.norm.weight", {8});
  add("lm_head.weight", {12, 8});
  return tensors;
}

inline RawTensor& tensor_named(std::vector<RawTensor>& tensors, const std::string& name) {
  for (RawTensor& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  throw std::runtime_error("no tensor " + name);
}

inline void write_folder(const std::filesystem::path& folder, const FixtureJson& config,
                         const std::vector<RawTensor>& tensors) {
  std::filesystem::create_directories(folder);
  write_bytes(folder / "config.json", config.dump());
  write_bytes(folder / "model.safetensors", safetensors_bytes(tensors));
}

// The rows of a matrix (or values of a vector, columns = 1) in the order in which GGUF files of llama models keep
// query and key rows: reshape(heads, 2, width / 2, columns), swap the two middle axes.
inline std::vector<float> interleave(const std::vector<float>& values, size_t heads, size_t columns) {
  const size_t half = values.size() / columns / heads / 2;
  std::vector<float> out;
  for (size_t head = 0; head < heads; ++head) {
    for (size_t j = 0; j < half; ++j) {
      for (size_t part = 0; part < 2; ++part) {
        const auto row = values.begin() + static_cast<std::ptrdiff_t>(((head * 2 + part) * half + j) * columns);
        out.insert(out.end(), row, row + static_cast<std::ptrdiff_t>(columns));
      }
    }
  }
  return out;
}

}  // namespace dynslice::testing
