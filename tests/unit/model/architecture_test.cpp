#include "dynslice/model/architecture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "dynslice/heal/lora.h"
#include "dynslice/model/decoder_layer.h"
#include "dynslice/model/tensor_layout.h"
#include "tiny_model.h"

namespace dynslice {
namespace {

using testing::MemoryCheckpoint;
using testing::random_model;
using testing::tiny_config;
using testing::tiny_model;

// Two layers that have every part between them, and every bias.
MemoryCheckpoint model_with_all_parts() {
  ModelConfig config = tiny_config({.layers = 1, .all_biases = true, .gemma = true});
  config.has_centred_norms = true;
  config.layers.front().has_layer_scale = true;
  config.layers.push_back(config.layers.front());
  config.layers.back().delta = {2, 4, 6, 5, 4};
  config.layer_is_sliding.push_back(false);
  return random_model(config);
}

std::set<std::string> all_tensors() {
  std::set<std::string> names;
  for (const LayerPart& part : layer_parts()) {
    names.insert(std::string(part.module) + ".weight");
    if (part.bias != nullptr) names.insert(std::string(part.module) + ".bias");
  }
  return names;
}

TEST(Architecture, EveryRoleIsInTheLayoutOfACheckpoint) {
  std::set<std::string> names;
  for (const OutputTensor& tensor : checkpoint_tensors(model_with_all_parts().config(), at::kFloat)) {
    if (const auto place = split_layer_name(tensor.name)) names.insert(place->second);
  }
  EXPECT_EQ(names, all_tensors());
}

TEST(Architecture, EveryRoleIsLoadedAndGivenBackUnderItsName) {
  MemoryCheckpoint model = model_with_all_parts();
  std::set<std::string> names;
  for (const int64_t index : {0, 1}) {
    const DecoderLayer layer = load_decoder_layer(model, index, at::kFloat, at::kCPU);
    for (const auto& [suffix, values] : layer_tensors(layer)) {
      names.insert(suffix);
      EXPECT_TRUE(at::equal(values, model.at(layer_tensor_name(index, suffix)))) << suffix;
    }
  }
  EXPECT_EQ(names, all_tensors());
}

TEST(Architecture, EveryRoleIsCounted) {
  const ModelConfig config = model_with_all_parts().config();
  int64_t parameters = 0;
  for (const OutputTensor& tensor : checkpoint_tensors(config, at::kFloat)) parameters += count_values(tensor);
  EXPECT_EQ(count_cost(config).parameters, parameters);
}

TEST(Architecture, EveryRoleIsATensorOrAMatrixOfTheLayer) {
  MemoryCheckpoint model = model_with_all_parts();
  int64_t values = 0, visited = 0, stored = 0;
  for (const int64_t index : {0, 1}) {
    DecoderLayer layer = load_decoder_layer(model, index, at::kFloat, at::kCPU);
    for (const at::Tensor* tensor : tensors_of(layer)) values += tensor->defined() ? tensor->numel() : 0;
    for_each_tensor(layer, [&](const at::Tensor& tensor) { visited += tensor.defined() ? tensor.numel() : 0; });
  }
  for (const TensorInfo& info : model.tensors()) {
    if (split_layer_name(info.name)) stored += static_cast<int64_t>(info.bytes / 4);
  }
  EXPECT_EQ(values, stored);
  EXPECT_EQ(visited, stored);
  for (const LayerPart& part : layer_parts()) {
    EXPECT_NE(matrix_member(part.role) != nullptr, own_member(part.role) != nullptr) << part.module;
    EXPECT_EQ(matrix_member(part.role) != nullptr, part.is_linear()) << part.module;
  }
}

TEST(Architecture, OfALayerWithoutAttentionOnlyTheMlpIsLeft) {
  const MemoryCheckpoint model = model_with_all_parts();
  DecoderLayer layer = load_decoder_layer(model, 0, at::kFloat, at::kCPU);
  remove_attention(layer);
  layer.shape.num_attention_heads = layer.shape.num_key_value_heads = 0;
  for (const auto& [suffix, values] : layer_tensors(layer)) {
    ASSERT_NE(find_part(suffix), nullptr) << suffix;
    EXPECT_EQ(find_part(suffix)->half, Half::kMlp) << suffix;
  }
}

TEST(Architecture, NamesOfPartsAreFoundAgain) {
  for (const LayerPart& part : layer_parts()) EXPECT_EQ(find_part(std::string(part.module) + ".weight"), &part);
  EXPECT_EQ(find_part("attn_shortcut.weight"), nullptr);
  EXPECT_EQ(find_part("self_attn.q_proj"), nullptr);
  EXPECT_THAT(linear_names(),
              ::testing::ElementsAre("q_proj", "k_proj", "v_proj", "o_proj", "in_proj_qkv", "in_proj_z", "in_proj_b",
                                     "in_proj_a", "out_proj", "gate_proj", "up_proj", "down_proj"));
}

TEST(Architecture, StoredNamesAreFoundAgain) {
  const ModelConfig config = model_with_all_parts().config();
  std::set<std::string> names;
  for (const OutputTensor& tensor : checkpoint_tensors(config, at::kFloat)) {
    EXPECT_EQ(names_of_stored(config, tensor.stored_name()), std::vector{tensor.name});
    const bool has_offset = tensor.name.ends_with("norm.weight") && !tensor.name.ends_with("linear_attn.norm.weight");
    EXPECT_EQ(tensor.stored.offset, has_offset ? 1 : 0) << tensor.name;
    names.insert(tensor.stored_name());
  }
  for (const char* name : {"post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"}) {
    EXPECT_TRUE(names.contains("model.layers.0." + std::string(name) + ".weight")) << name;
  }
}

TEST(Architecture, TensorsThatAFileHasAsOneLieThereOneBehindTheOther) {
  ModelConfig config = tiny_model({.layers = 2}).config();
  config.model_type = "phi3";
  const StoredTensor value = stored_tensor(config, "model.layers.1.self_attn.v_proj.weight");
  EXPECT_EQ(value.name, "model.layers.1.self_attn.qkv_proj.weight");
  EXPECT_EQ(value.first_row, 32 + 16);
  EXPECT_EQ(stored_tensor(config, "model.layers.1.mlp.up_proj.weight").first_row, 96);
  EXPECT_EQ(stored_tensor(config, "model.layers.1.mlp.down_proj.weight").name, "model.layers.1.mlp.down_proj.weight");
  EXPECT_THAT(names_of_stored(config, "model.layers.0.mlp.gate_up_proj.weight"),
              ::testing::ElementsAre("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"));
  int64_t rows = 0;
  for (const OutputTensor& tensor : checkpoint_tensors(config, at::kFloat)) {
    if (tensor.stored_name() != value.name) continue;
    EXPECT_EQ(tensor.stored.first_row, rows);
    rows += tensor.shape.front();
  }
  EXPECT_EQ(rows, 32 + 16 + 16);
  config.layers.front().intermediate_size -= 1;  // what dynslice alone reads has them apart
  EXPECT_EQ(stored_tensor(config, "model.layers.1.self_attn.v_proj.weight").name,
            "model.layers.1.self_attn.v_proj.weight");
}

TEST(Architecture, WhatDynsliceAloneReadsIsStoredUnderItsOwnNames) {
  ModelConfig config = tiny_model({.layers = 2, .gemma = true}).config();
  config.layers.front().intermediate_size -= 1;
  for (const OutputTensor& tensor : checkpoint_tensors(config, at::kFloat)) {
    EXPECT_EQ(tensor.stored_name(), tensor.name);
    EXPECT_EQ(tensor.stored.offset, 0);
  }
}

TEST(Architecture, LoraUpdatesAllLinearsUnlessToldOtherwise) {
  EXPECT_THAT(updated_modules(model_with_all_parts().config(), {}),
              ::testing::UnorderedElementsAreArray(linear_names()));
}

TEST(Architecture, ModelTypesAreFoundByTheirNames) {
  for (const Architecture& row : architectures()) EXPECT_EQ(find_architecture(row.model_type), &row);
  EXPECT_EQ(find_architecture("mamba"), nullptr);
}

}  // namespace
}  // namespace dynslice
