#include "dynslice/model/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "dynslice/model/rope.h"
#include "dynslice/model/tensor_layout.h"
#include "unit/formats/gguf_builder.h"
#include "unit/support/error_matchers.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

using testing::expect_error;
using testing::GgufBuilder;
using testing::TemporaryFolder;
using testing::write_bytes;

Json tiny(const std::string& model_type) {
  return {{"model_type", model_type},      {"vocab_size", 100},      {"hidden_size", 32},
          {"intermediate_size", 48},       {"num_hidden_layers", 3}, {"num_attention_heads", 4},
          {"num_key_value_heads", 2},      {"hidden_act", "silu"},   {"rms_norm_eps", 1e-5},
          {"max_position_embeddings", 512}};
}

class Config : public ::testing::Test {
 protected:
  ModelConfig read(const std::string& text) {
    write_bytes(path_, text);
    return read_config(path_);
  }
  ModelConfig read(const Json& json) { return read(json.dump()); }
  ModelConfig read_changed(Json json, const Json& changes) {
    json.update(changes);
    return read(json);
  }
  void expect_refused(const Json& json, std::vector<std::string> parts) {
    parts.push_back(path_.string());
    expect_error(ErrorKind::kBadInput, parts, [&] { read(json); });
  }
  void expect_llama_refused(const Json& changes, const std::vector<std::string>& parts) {
    Json json = tiny("llama");
    json.update(changes);
    expect_refused(json, parts);
  }

  TemporaryFolder folder_;
  std::filesystem::path path_ = folder_ / "config.json";
};

TEST_F(Config, ReadsALlama) {
  const ModelConfig config =
      read_changed(tiny("llama"), {{"rope_theta", 5e5}, {"bos_token_id", 1}, {"eos_token_id", {7, 8}}});
  EXPECT_EQ(config.vocab_size, 100);
  EXPECT_EQ(config.layers.front().head_dim, 8);
  EXPECT_EQ(config.rope.theta, 5e5);
  EXPECT_EQ(config.rms_norm_eps, 1e-5);
  EXPECT_EQ(config.num_layers(), 3);
  EXPECT_EQ(config.layers[2], (LayerShape{32, 32, 32, 48, 4, 2, 8, {}, {}, true}));
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_EQ(config.eos_token_id, 7);
  EXPECT_FALSE(config.tie_word_embeddings || config.qkv_bias || config.o_bias || config.mlp_bias);
  EXPECT_FALSE(config.sliding_window.has_value());
  EXPECT_TRUE(config.is_ordinary());
}

TEST_F(Config, TakesTransformersDefaultsForWhatIsLeftOut) {
  Json llama = tiny("llama");
  for (const char* key : {"num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "hidden_act"})
    llama.erase(key);
  const ModelConfig config = read(llama);
  EXPECT_EQ(config.layers[0].num_key_value_heads, 4);
  EXPECT_EQ(config.rms_norm_eps, 1e-6);
  EXPECT_EQ(config.max_position_embeddings, 2048);
  EXPECT_EQ(config.rope.theta, 10000.0);
}

TEST_F(Config, KnowsWhichBiasesEachArchitectureHas) {
  const ModelConfig llama = read_changed(tiny("llama"), {{"attention_bias", true}, {"mlp_bias", true}});
  EXPECT_TRUE(llama.qkv_bias && llama.o_bias && llama.mlp_bias);
  const ModelConfig qwen2 = read(tiny("qwen2"));
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.o_bias || qwen2.mlp_bias);
  EXPECT_FALSE(read(tiny("mistral")).qkv_bias);
}

TEST_F(Config, ReadsRopeScalingOfTransformers4And5Alike) {
  const Json llama3 = {{"rope_type", "llama3"},
                       {"factor", 32.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 8192}};
  Json parameters = llama3;
  parameters["rope_theta"] = 5e5;
  const ModelConfig four = read_changed(tiny("llama"), {{"rope_theta", 5e5}, {"rope_scaling", llama3}});
  const ModelConfig five = read_changed(tiny("llama"), {{"rope_parameters", parameters}});
  for (const ModelConfig& config : {four, five}) {
    EXPECT_EQ(config.rope.theta, 5e5);
    EXPECT_EQ(config.rope.scaling, RopeScalingKind::kLlama3);
    EXPECT_EQ(config.rope.factor, 32.0);
    EXPECT_EQ(config.rope.original_max_position_embeddings, 8192);
  }
  const ModelConfig linear = read_changed(tiny("llama"), {{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}});
  EXPECT_EQ(linear.rope.scaling, RopeScalingKind::kLinear);
  EXPECT_EQ(linear.rope.factor, 2.0);
  const ModelConfig plain =
      read_changed(tiny("llama"), {{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 3.0}}}});
  EXPECT_EQ(plain.rope.scaling, RopeScalingKind::kNone);
  EXPECT_EQ(plain.rope.theta, 3.0);
}

TEST_F(Config, ReadsMistralsWindow) {
  EXPECT_EQ(read_changed(tiny("mistral"), {{"sliding_window", 64}}).sliding_window, 64);
  EXPECT_FALSE(read_changed(tiny("mistral"), {{"sliding_window", nullptr}}).sliding_window.has_value());
  EXPECT_EQ(read(tiny("mistral")).sliding_window, 4096);  // transformers' default
}

TEST_F(Config, ReadsQwen2sWindow) {
  EXPECT_FALSE(
      read_changed(tiny("qwen2"), {{"sliding_window", 64}, {"max_window_layers", 0}}).sliding_window.has_value());
  const ModelConfig some =
      read_changed(tiny("qwen2"), {{"use_sliding_window", true}, {"sliding_window", 64}, {"max_window_layers", 2}});
  EXPECT_EQ(some.sliding_window, 64);
  EXPECT_EQ(some.layer_is_sliding, (std::vector<bool>{false, false, true}));
  const ModelConfig listed =
      read_changed(tiny("qwen2"), {{"use_sliding_window", true},
                                   {"sliding_window", 64},
                                   {"layer_types", {"sliding_attention", "full_attention", "sliding_attention"}}});
  EXPECT_EQ(listed.layer_is_sliding, (std::vector<bool>{true, false, true}));
  const ModelConfig all =
      read_changed(tiny("qwen2"), {{"use_sliding_window", true}, {"sliding_window", 64}, {"max_window_layers", 0}});
  EXPECT_TRUE(all.layer_is_sliding.empty());
  EXPECT_EQ(all.sliding_window, 64);
}

TEST_F(Config, NamesEveryNeededKeyThatIsMissing) {
  for (const char* key :
       {"model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}) {
    Json json = tiny("llama");
    json.erase(key);
    expect_refused(json, {std::string("\"") + key + "\" is missing"});
  }
}

TEST_F(Config, ListsWhatIsSupportedWhenItMeetsSomethingElse) {
  expect_refused(tiny("gemma4"), {"gemma4", "llama, mistral, qwen2"});
  expect_llama_refused({{"rope_scaling", {{"rope_type", "longrope"}, {"factor", 4.0}}}},
                       {"longrope", "default, linear, llama3, yarn"});
  expect_llama_refused({{"hidden_act", "gelu"}}, {"hidden_act", "silu", "gelu"});
  expect_llama_refused({{"partial_rotary_factor", 0.5}}, {"partial_rotary_factor"});
  expect_llama_refused({{"quantization_config", {{"quant_method", "gptq"}}}}, {"quantization_config"});
}

TEST_F(Config, RefusesNumbersThatCannotBe) {
  const std::vector<std::pair<std::string, Json>> wrong = {{"vocab_size", 0},
                                                           {"hidden_size", -32},
                                                           {"hidden_size", 1e18},
                                                           {"hidden_size", "32"},
                                                           {"num_hidden_layers", 10001},
                                                           {"num_hidden_layers", 0},
                                                           {"intermediate_size", 1LL << 40},
                                                           {"num_attention_heads", 5},
                                                           {"num_key_value_heads", 3},
                                                           {"num_key_value_heads", 8},
                                                           {"head_dim", 7},
                                                           {"head_dim", 1 << 19},
                                                           {"rms_norm_eps", 0.0},
                                                           {"rms_norm_eps", -1.0},
                                                           {"rope_theta", 0},
                                                           {"max_position_embeddings", 0},
                                                           {"tie_word_embeddings", 1},
                                                           {"eos_token_id", "</s>"},
                                                           {"num_hidden_layers", Json::array()}};
  for (const auto& [key, value] : wrong) {
    SCOPED_TRACE(key + " = " + value.dump());
    expect_llama_refused({{key, value}}, {key});
  }
}

TEST_F(Config, RefusesIncompleteLlama3Scaling) {
  expect_llama_refused({{"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}}}},
                       {"rope_scaling", "low_freq_factor"});
  expect_llama_refused({{"rope_scaling", {{"rope_type", "linear"}}}}, {"rope_scaling", "factor"});
}

TEST_F(Config, RefusesYarnThatCannotBe) {
  const auto yarn = [](const char* key, const Json& value) {
    Json scaling = {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 64}};
    scaling[key] = value;
    return Json{{"rope_scaling", scaling}};
  };
  for (const char* key : {"factor", "beta_fast", "beta_slow", "attention_factor", "original_max_position_embeddings"})
    expect_llama_refused(yarn(key, -1), {"rope_scaling", key});
  expect_llama_refused(yarn("beta_slow", 64), {"rope_scaling", "beta_fast"});
  expect_llama_refused(yarn("factor", nullptr), {"rope_scaling", "factor"});
}

TEST_F(Config, ReadsWhatArchitecturesHaveOfTheirOwn) {
  const ModelConfig granite = read_changed(tiny("granite"), {{"residual_multiplier", 0.22}, {"logits_scaling", 8.0}});
  EXPECT_EQ(granite.branch_scale, 0.22);
  EXPECT_EQ(granite.logit_scale, 0.125);
  EXPECT_EQ(granite.attention_scale, 1);  // transformers' default, not head_dim^(-1/2)

  Json gemma = tiny("gemma2");
  gemma.erase("hidden_act");
  EXPECT_EQ(read(gemma).score_cap, 50);
  EXPECT_EQ(read(gemma).logit_cap, 30);
  EXPECT_EQ(read(gemma).layer_is_sliding, (std::vector<bool>{true, false, true}));
  EXPECT_EQ(read_changed(gemma, {{"attn_logit_softcapping", nullptr}}).score_cap, 0);

  const ModelConfig exaone = read_changed(tiny("exaone4"), {{"sliding_window_pattern", 2}});
  EXPECT_EQ(exaone.layer_is_sliding, (std::vector<bool>{true, false, true}));
  EXPECT_EQ(exaone.layer_is_unrotated, (std::vector<bool>{false, true, false}));
  EXPECT_TRUE(read_changed(tiny("exaone4"), {{"sliding_window", nullptr}}).layer_is_unrotated.empty());

  const ModelConfig olmo = read(tiny("olmo3"));
  EXPECT_EQ(olmo.layers.front().query_key_norm, QueryKeyNorm::kWhole);
  EXPECT_FALSE(olmo.layers.front().has_input_norms);
  EXPECT_EQ(olmo.sliding_rope->theta, 500000);

  EXPECT_EQ(read(tiny("glm4")).rotary_dim, 64);  // half of a head of 128
  EXPECT_TRUE(read(tiny("glm4")).rotary_is_interleaved);
  EXPECT_EQ(read_changed(tiny("phi3"), {{"partial_rotary_factor", 0.5}}).rotary_dim, 4);
  Json longrope = {{"type", "su"}, {"short_factor", {1, 1, 1, 2}}, {"long_factor", {2, 3, 4, 5}}};
  const ModelConfig phi =
      read_changed(tiny("phi3"), {{"rope_scaling", longrope}, {"original_max_position_embeddings", 128}});
  EXPECT_EQ(phi.rope.scaling, RopeScalingKind::kLongRope);
  EXPECT_EQ(phi.rope.long_divisors, (std::vector<double>{2, 3, 4, 5}));
  EXPECT_NEAR(phi.rope.attention_factor, std::sqrt(1 + std::log(4) / std::log(128)), 1e-12);
  EXPECT_EQ(inverse_frequencies(phi.rope, 8, 128)[3], inverse_frequencies({}, 8)[3] / 2);
  EXPECT_EQ(inverse_frequencies(phi.rope, 8, 129)[3], inverse_frequencies({}, 8)[3] / 5);

  const Json dynamic = {{"rope_scaling", {{"rope_type", "dynamic"}, {"factor", 1.0}, {"alpha", 1000.0}}}};
  EXPECT_NEAR(read_changed(tiny("hunyuan_v1_dense"), dynamic).rope.theta, 1e4 * std::pow(1000, 8.0 / 6), 1);
  EXPECT_FALSE(read(tiny("hunyuan_v1_dense")).sliding_window.has_value());
}

TEST_F(Config, ReadsALanguageModelBesideOtherParts) {
  Json text = tiny("llama");
  text["torch_dtype"] = "float32";
  const Json whole = {
      {"model_type", "llava"}, {"text_config", text}, {"vision_config", {{"hidden_size", 8}}}, {"eos_token_id", 5}};
  ModelConfig config = read(whole);
  EXPECT_EQ(config.model_type, "llama");
  EXPECT_EQ(config.eos_token_id, 5);
  EXPECT_TRUE(config.is_wrapped());
  const StoredTensor stored = stored_tensor(config, "model.layers.2.mlp.up_proj.weight");
  EXPECT_EQ(stored.name, "language_model.model.layers.2.mlp.up_proj.weight");
  EXPECT_EQ(names_of_stored(config, stored.name), std::vector<std::string>{"model.layers.2.mlp.up_proj.weight"});
  EXPECT_EQ(names_of_stored(config, "vision_tower.x.bias"), std::vector<std::string>{"vision_tower.x.bias"});
  config.wrapper_names = WrapperNames::kInside;
  EXPECT_EQ(stored_tensor(config, "model.norm.weight").name, "model.language_model.norm.weight");
  EXPECT_EQ(stored_tensor(config, "lm_head.weight").name, "lm_head.weight");

  for (LayerShape& shape : config.layers) shape.intermediate_size = 40;
  const Json written = Json(write_config(config, "bfloat16"));
  EXPECT_EQ(written.at("model_type"), "llava");
  EXPECT_EQ(written.at("vision_config"), whole.at("vision_config"));
  EXPECT_EQ(written.at("text_config").at("intermediate_size"), 40);
  EXPECT_EQ(written.at("text_config").at("torch_dtype"), "bfloat16");
  config.layers.front().intermediate_size = 32;  // only dynslice's modeling code has unequal layers
  EXPECT_EQ(Json(write_config(config, "bfloat16")).at("base_model_type"), "llama");
  EXPECT_EQ(stored_tensor(config, "model.norm.weight").name, "model.norm.weight");

  Json other = whole;
  other["text_config"]["model_type"] = "rwkv";
  expect_refused(other, {"text_config", "model_type", "rwkv"});
  other = whole;
  other["quantization_config"] = {{"quant_method", "compressed-tensors"}};
  expect_refused(other, {"quantization_config"});
}

Json gemma4() {
  Json json = tiny("gemma4_text");
  json.update({{"head_dim", 8},
               {"global_head_dim", 16},
               {"attention_k_eq_v", true},
               {"num_global_key_value_heads", 1},
               {"hidden_size_per_layer_input", 0},
               {"layer_types", {"sliding_attention", "full_attention", "full_attention"}}});
  json.erase("hidden_act");
  return json;
}

TEST_F(Config, ReadsTheHeadsThatGemma4sLayersHaveByTheirType) {
  const ModelConfig config = read(gemma4());
  const LayerShape &sliding = config.layers.front(), &global = config.layers.back();
  EXPECT_EQ(sliding.head_dim, 8);
  EXPECT_EQ(sliding.num_key_value_heads, 2);
  EXPECT_TRUE(sliding.has_values);
  EXPECT_EQ(global.head_dim, 16);
  EXPECT_EQ(global.num_key_value_heads, 1);
  EXPECT_FALSE(global.has_values);
  EXPECT_EQ(config.layers[1], global);
  EXPECT_EQ(config.rope.turning_share, 0.25);
  EXPECT_EQ(config.sliding_rope->turning_share, 1);
  EXPECT_TRUE(config.is_ordinary());

  Json by_layer = gemma4();  // as transformers writes it
  for (const char* key : {"global_head_dim", "num_global_key_value_heads"}) by_layer.erase(key);
  const Json own = {{"head_dim", 16}, {"num_key_value_heads", 1}};
  by_layer["per_layer_config"] = {{"1", own}, {"2", own}};
  EXPECT_EQ(read(by_layer).layers, config.layers);
  const Json written = Json(write_config(read(by_layer), "float32"));
  EXPECT_FALSE(written.contains("per_layer_config"));
  EXPECT_EQ(read(written).layers, config.layers);

  expect_refused([&] { return by_layer["per_layer_config"]["2"]["head_dim"] = 12, by_layer; }(), {"per_layer_config"});
  const auto refused = [&](const Json& changes, const std::string& key) {
    Json json = gemma4();
    json.update(changes);
    expect_refused(json, {key});
  };
  refused({{"hidden_size_per_layer_input", 64}}, "hidden_size_per_layer_input");
  refused({{"num_kv_shared_layers", 1}}, "num_kv_shared_layers");
  refused({{"enable_moe_block", true}}, "enable_moe_block");
  refused({{"global_head_dim", 7}}, "global_head_dim");
  refused({{"num_global_key_value_heads", 3}}, "num_global_key_value_heads");
  refused({{"use_bidirectional_attention", "all"}}, "use_bidirectional_attention");
  Json silent = gemma4();
  silent.erase("hidden_size_per_layer_input");  // which means that there are
  expect_refused(silent, {"hidden_size_per_layer_input"});
}

TEST_F(Config, IsNoOrdinaryGemma4WhoseMlpsDifferOrWhoseLastLayerSlides) {
  ModelConfig config = read(gemma4());
  for (size_t i : {1, 2}) config.layers[i].intermediate_size = 40;
  EXPECT_FALSE(config.is_ordinary());
  EXPECT_EQ(read(Json(write_config(config, "float32"))).layers, config.layers);
  config = read(gemma4());
  config.layers[1].num_attention_heads = config.layers[1].num_key_value_heads = 0;
  EXPECT_EQ(read(Json(write_config(config, "float32"))).layers, config.layers);
  config.layers.resize(1);
  config.layer_is_sliding.resize(1);
  EXPECT_FALSE(config.is_ordinary());  // transformers would let it see all, with other heads
  EXPECT_EQ(read(Json(write_config(config, "float32"))).layers, config.layers);
}

TEST_F(Config, RefusesWhatArchitecturesCannotHaveOfTheirOwn) {
  const auto changed = [](const char* model_type, const Json& changes) {
    Json json = tiny(model_type);
    json.update(changes);
    return json;
  };
  for (const char* key : {"attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"})
    expect_refused(changed("granite", {{key, 0}}), {key, "positive"});
  expect_refused(changed("gemma2", {{"hidden_act", nullptr}, {"final_logit_softcapping", -1}}),
                 {"final_logit_softcapping"});
  expect_llama_refused({{"attn_logit_softcapping", 50.0}}, {"attn_logit_softcapping", "null"});
  expect_llama_refused({{"rope_scaling", {{"rope_type", "dynamic"}, {"alpha", 50.0}}}}, {"rope_type", "yarn"});
  expect_refused(changed("hunyuan_v1_dense", {{"rope_scaling", {{"rope_type", "dynamic"}, {"factor", 2.0}}}}),
                 {"alpha"});
  for (const double share : {0.0, 1.5, 0.1})
    expect_refused(changed("phi3", {{"partial_rotary_factor", share}}), {"partial_rotary_factor"});
  for (const char* key : {"short_factor", "long_factor"}) {
    Json longrope = {{"type", "longrope"}, {"short_factor", {1, 1, 1, 2}}, {"long_factor", {2, 3, 4, 5}}};
    longrope[key] = {1, 2, 3};
    expect_refused(changed("phi3", {{"rope_scaling", longrope}}), {key, "4 positive numbers"});
    longrope[key] = {1, 2, 3, 0};
    expect_refused(changed("phi3", {{"rope_scaling", longrope}}), {key, "4 positive numbers"});
  }
  expect_refused(tiny("ministral3"), {"rope_parameters", "yarn"});
  const Json linear = {{"rope_type", "linear"}, {"factor", 2.0}, {"llama_4_scaling_beta", 0.1}};
  expect_refused(changed("ministral3", {{"rope_parameters", linear}}), {"llama_4_scaling_beta", "yarn"});
}

TEST_F(Config, RefusesAFileCutAnywhere) {
  const std::string whole = tiny("llama").dump();
  for (size_t length = 0; length < whole.size(); ++length) {
    expect_error(ErrorKind::kBadInput, {path_.string()}, [&] { read(whole.substr(0, length)); });
  }
}

TEST_F(Config, RefusesNestingThatWouldOverflowTheStack) {
  std::string text = tiny("llama").dump();
  text.back() = ',';
  text += "\"x\": " + std::string(300000, '[') + std::string(300000, ']') + "}";
  expect_error(ErrorKind::kBadInput, {path_.string(), "nested"}, [&] { read(text); });
}

TEST_F(Config, TakesBracketsInsideStringsForText) {
  const std::string brackets = "\"\\" + std::string(1000, '[') + "\"";
  EXPECT_EQ(read_changed(tiny("llama"), {{"comment", brackets}}).source.at("comment"), brackets);
}

TEST_F(Config, WritesAnOrdinaryModelAsItCame) {
  Json source = tiny("llama");
  source["torch_dtype"] = "float16";
  source["some_key_of_others"] = {{"kept", true}};
  const Json written = write_config(read(source), "bfloat16");
  source["torch_dtype"] = "bfloat16";
  EXPECT_EQ(written, source);
}

TEST_F(Config, WritesTheNumbersOfAnOrdinaryModelThatChanged) {
  Json source = tiny("qwen2");
  source["dtype"] = "float32";
  source.update(Json{{"use_sliding_window", true}, {"sliding_window", 64}, {"max_window_layers", 2}});
  ModelConfig config = read(source);
  config.layers.erase(config.layers.begin());
  config.layer_is_sliding.erase(config.layer_is_sliding.begin());
  for (LayerShape& shape : config.layers) shape.intermediate_size = 40;
  const Json written = write_config(config, "float32");
  EXPECT_EQ(written.at("model_type"), "qwen2");
  EXPECT_FALSE(written.contains("torch_dtype"));
  const ModelConfig again = read(written);
  EXPECT_EQ(again.layers, config.layers);
  EXPECT_EQ(again.layer_is_sliding, (std::vector<bool>{false, true}));
}

TEST_F(Config, KeepsHeadWidthAndKeyValueHeadsWhenHeadsAreTakenAway) {
  Json source = tiny("llama");
  source.erase("num_key_value_heads");
  ModelConfig config = read(source);
  for (LayerShape& shape : config.layers) shape.num_attention_heads = shape.num_key_value_heads = 2;
  EXPECT_EQ(read(Json(write_config(config, "float32"))).layers, config.layers);
  EXPECT_EQ(read(Json(write_config(config, "float32"))).layers.front().head_dim, 8);
  ModelConfig fewer_queries = read(source);
  for (LayerShape& shape : fewer_queries.layers) shape.num_attention_heads = 4, shape.num_key_value_heads = 2;
  EXPECT_EQ(read(Json(write_config(fewer_queries, "float32"))).layers, fewer_queries.layers);
}

// A llama with three layers whose streams are cut to different widths.
ModelConfig sliced(ModelConfig config) {
  const ShortcutShape matrix{ShortcutKind::kMatrix, 0};
  config.layers[0] = {24, 20, 16, 48, 4, 2, 8, matrix, {ShortcutKind::kLowRank, 3}, false};
  config.layers[1] = {16, 16, 16, 40, 2, 1, 8, {}, {}, false};
  config.layers[2] = {16, 18, 30, 48, 4, 4, 8, {ShortcutKind::kSymmetric, 5}, matrix, true};
  config.embedding_width = 24;
  config.head_width = 30;
  config.has_final_norm_weight = false;
  return config;
}

TEST_F(Config, ReadsBackTheSlicedModelThatItWrote) {
  const ModelConfig config = sliced(read_changed(tiny("llama"), {{"rope_theta", 5e5}, {"bos_token_id", 3}}));
  EXPECT_FALSE(config.is_ordinary());
  const Json written = write_config(config, "bfloat16");
  EXPECT_EQ(written.at("model_type"), "dynslice");
  EXPECT_EQ(written.at("base_model_type"), "llama");
  EXPECT_EQ(written.at("architectures"), Json({"DynsliceForCausalLM"}));
  const ModelConfig again = read(written);
  EXPECT_EQ(again.layers, config.layers);
  EXPECT_EQ(again.model_type, "llama");
  EXPECT_EQ(again.hidden_size, 32);
  EXPECT_EQ(again.layers.front().head_dim, 8);
  EXPECT_EQ(again.rope.theta, 5e5);
  EXPECT_EQ(again.embedding_width, 24);
  EXPECT_EQ(again.head_width, 30);
  EXPECT_EQ(again.bos_token_id, 3);
  EXPECT_FALSE(again.has_final_norm_weight);
  EXPECT_FALSE(again.has_embedding_rotation);
  EXPECT_FALSE(again.has_head_rotation);
  EXPECT_EQ(Json(write_config(again, "bfloat16")), written);
}

TEST_F(Config, ReadsBackTheRotationsBesideATiedMatrix) {
  ModelConfig config = sliced(read_changed(tiny("llama"), {{"tie_word_embeddings", true}}));
  config.has_embedding_rotation = config.has_head_rotation = true;
  const ModelConfig again = read(Json(write_config(config, "bfloat16")));
  EXPECT_TRUE(again.tie_word_embeddings);
  EXPECT_TRUE(again.has_embedding_rotation);
  EXPECT_TRUE(again.has_head_rotation);
  EXPECT_EQ(again.embedding_columns(), 32);
  EXPECT_EQ(again.head_columns(), 32);
  // 32 x 24 and 32 x 30 rotations, and one matrix of 100 x 32 in the place of 100 x 24 and 100 x 30.
  const ModelConfig plain = sliced(read(tiny("llama")));
  EXPECT_EQ(count_cost(again).parameters,
            count_cost(plain).parameters - 100 * (24 + 30) + 100 * 32 + 32 * 24 + 32 * 30);
  EXPECT_EQ(count_cost(again).multiply_adds_per_token,
            count_cost(plain).multiply_adds_per_token - 100 * 30 + 100 * 32 + 32 * 24 + 32 * 30);
}

TEST_F(Config, WritesAnOrdinaryModelThatWasReadFromASlicedOneAsOrdinary) {
  const ModelConfig dense = read(tiny("llama"));
  ModelConfig again = read(Json(write_config(sliced(dense), "float32")));
  again.layers = dense.layers;
  again.embedding_width = again.head_width = 32;
  again.has_final_norm_weight = true;
  const Json written = write_config(again, "float32");
  EXPECT_EQ(written.at("model_type"), "llama");
  EXPECT_EQ(written.at("architectures"), Json({"LlamaForCausalLM"}));
  EXPECT_FALSE(written.contains("dynslice"));
}

TEST_F(Config, RefusesSlicedShapesThatDoNotFitEachOther) {
  const Json good = write_config(sliced(read(tiny("llama"))), "float32");
  const auto expect_sliced_refused = [&](const std::string& pointer, const Json& value,
                                         const std::vector<std::string>& parts) {
    SCOPED_TRACE(pointer + " = " + value.dump());
    Json bad = good;
    bad[Json::json_pointer(pointer)] = value;
    expect_refused(bad, parts);
  };
  expect_sliced_refused("/dynslice/format", 1, {"format"});
  expect_sliced_refused("/dynslice/embedding_width", 23, {"layers[0].input_width"});
  expect_sliced_refused("/dynslice/layers/1/input_width", 17, {"layers[1]"});
  expect_sliced_refused("/dynslice/layers/2/output_width", 31, {"head_width"});
  const Json identity = {{"kind", "identity"}, {"rank", 0}}, symmetric = {{"kind", "symmetric"}, {"rank", 2}};
  expect_sliced_refused("/dynslice/layers/0/attn_shortcut", identity, {"layers[0]: attn_shortcut", "widths differ"});
  expect_sliced_refused("/dynslice/layers/0/mlp_shortcut", symmetric, {"layers[0]: mlp_shortcut", "narrower"});
  expect_sliced_refused("/dynslice/layers/0/mlp_shortcut/kind", "none", {"layers[0]: mlp_shortcut", "low_rank"});
  expect_sliced_refused("/dynslice/layers/0/mlp_shortcut/rank", -1, {"layers[0]: mlp_shortcut", "rank"});
  expect_sliced_refused("/dynslice/layers/0/middle_width", 0, {"layers[0]", "middle_width"});
  expect_sliced_refused("/dynslice/layers/0/num_key_value_heads", 3, {"layers[0]", "num_key_value_heads"});
  expect_sliced_refused("/dynslice/layers", Json::array(), {"layers", "3"});
  expect_sliced_refused("/dynslice/layers/0", 5, {"layers[0]"});
  expect_sliced_refused("/base_model_type", "gemma", {"base_model_type", "gemma"});
  expect_sliced_refused("/tie_word_embeddings", true, {"head_width", "tied"});
}

TEST_F(Config, CountsTheParametersOfADenseModel) {
  // Layer: q 32x32, k and v 16x32, o 32x32, gate, up and down 48x32, two norms.
  const int64_t matrices = 32 * 32 * 2 + 16 * 32 * 2 + 48 * 32 * 3, layer = matrices + 2 * 32;
  const ModelCost untied = count_cost(read(tiny("llama")));
  EXPECT_EQ(untied.parameters, 2 * 100 * 32 + 3 * layer + 32);
  EXPECT_EQ(untied.multiply_adds_per_token, 3 * matrices + 100 * 32);
  const ModelCost tied = count_cost(read_changed(tiny("llama"), {{"tie_word_embeddings", true}}));
  EXPECT_EQ(tied.parameters, 100 * 32 + 3 * layer + 32);
  EXPECT_EQ(tied.multiply_adds_per_token, untied.multiply_adds_per_token);
  const ModelCost biased = count_cost(read_changed(tiny("llama"), {{"attention_bias", true}, {"mlp_bias", true}}));
  EXPECT_EQ(biased.parameters, untied.parameters + 3 * (32 + 2 * 16 + 32 + 2 * 48 + 32));
  EXPECT_EQ(biased.multiply_adds_per_token, untied.multiply_adds_per_token);
}

TEST_F(Config, CountsShortcutsOfASlicedModel) {
  ModelConfig config = sliced(read(tiny("llama")));
  config.layers = {config.layers[0]};
  config.head_width = 16;
  const int64_t matrices = 32 * 24 + 2 * 16 * 24 + 20 * 32 + 2 * 48 * 20 + 16 * 48;
  const int64_t shortcuts = 20 * 24 + 3 * (20 + 16);
  EXPECT_EQ(count_cost(config).multiply_adds_per_token, matrices + shortcuts + 100 * 16);
  EXPECT_EQ(count_cost(config).parameters, matrices + shortcuts + 100 * 24 + 100 * 16);
  // The symmetric kind stores one factor and uses it twice.
  config.layers[0].attn_shortcut = {ShortcutKind::kSymmetric, 2};
  EXPECT_EQ(count_cost(config).parameters, matrices + 2 * 24 + 3 * (20 + 16) + 100 * 24 + 100 * 16);
  EXPECT_EQ(count_cost(config).multiply_adds_per_token, matrices + 2 * 2 * 24 + 3 * (20 + 16) + 100 * 16);
}

// ---- GGUF

GgufBuilder gguf_metadata(const std::string& architecture) {
  GgufBuilder builder;
  const std::string& a = architecture;
  builder.text("general.architecture", a).number(a + ".block_count", 3).number(a + ".embedding_length", 32);
  builder.number(a + ".feed_forward_length", 48).number(a + ".attention.head_count", 4);
  builder.number(a + ".attention.head_count_kv", 2).number(a + ".context_length", 512);
  builder.real(a + ".attention.layer_norm_rms_epsilon", 1e-5F).real(a + ".rope.freq_base", 5e5F);
  builder.number("tokenizer.ggml.bos_token_id", 1).number("tokenizer.ggml.eos_token_id", 2);
  builder.floats("token_embd.weight", {100, 32}, std::vector<float>(3200, 0.5F));
  return builder;
}

class GgufConfig : public Config {
 protected:
  ModelConfig read_gguf(const GgufBuilder& builder) {
    write_bytes(folder_ / "m.gguf", builder.bytes());
    return read_config(GgufFile(folder_ / "m.gguf"));
  }
  void expect_gguf_refused(const GgufBuilder& builder, const std::vector<std::string>& parts) {
    expect_error(ErrorKind::kBadInput, parts, [&] { read_gguf(builder); });
  }
};

TEST_F(GgufConfig, SaysWhatTheMetadataSay) {
  const ModelConfig config = read_gguf(gguf_metadata("llama"));
  EXPECT_EQ(config.model_type, "llama");
  EXPECT_EQ(config.vocab_size, 100);
  EXPECT_EQ(config.layers[0], (LayerShape{32, 32, 32, 48, 4, 2, 8, {}, {}, true}));
  EXPECT_EQ(config.rms_norm_eps, 1e-5);  // not the 32-bit float's 9.99999974e-06
  EXPECT_EQ(config.rope.theta, 5e5);
  EXPECT_EQ(config.max_position_embeddings, 512);
  EXPECT_TRUE(config.tie_word_embeddings);  // no output.weight
  EXPECT_EQ(config.eos_token_id, 2);
  EXPECT_TRUE(read_gguf(gguf_metadata("qwen2")).qkv_bias);
}

TEST_F(GgufConfig, HasASourceThatReadsLikeAnyConfigJson) {
  GgufBuilder builder = gguf_metadata("qwen2");
  builder.floats("output.weight", {1}, {1});
  const ModelConfig config = read_gguf(builder);
  EXPECT_EQ(config.source.at("architectures"), Json({"Qwen2ForCausalLM"}));
  EXPECT_EQ(config.source.at("tie_word_embeddings"), false);
  const ModelConfig again = read(Json(write_config(config, "bfloat16")));
  EXPECT_EQ(again.layers, config.layers);
  EXPECT_EQ(again.rope.theta, config.rope.theta);
  EXPECT_EQ(again.bos_token_id, config.bos_token_id);
}

TEST_F(GgufConfig, ReadsLinearScalingAndMistralsWindow) {
  GgufBuilder linear = gguf_metadata("llama");
  linear.text("llama.rope.scaling.type", "linear").real("llama.rope.scaling.factor", 4.0F);
  EXPECT_EQ(read_gguf(linear).rope.scaling, RopeScalingKind::kLinear);
  EXPECT_EQ(read_gguf(linear).rope.factor, 4.0);
  GgufBuilder window = gguf_metadata("llama");
  window.number("llama.attention.sliding_window", 64);
  EXPECT_EQ(read_gguf(window).model_type, "mistral");
  EXPECT_EQ(read_gguf(window).sliding_window, 64);
}

// rope_freqs.weight as the converter makes it for heads of width 64: an independent writing of Llama 3's rule.
std::vector<float> llama3_divisors(double theta, double factor, double original) {
  std::vector<float> divisors;
  for (int pair = 0; pair < 32; ++pair) {
    const double wavelength = 2 * std::numbers::pi * std::pow(theta, 2.0 * pair / 64);
    double divisor = 1;
    if (wavelength > original) {
      divisor = factor;
    } else if (wavelength >= original / 4) {
      const double smooth = (original / wavelength - 1) / 3;
      divisor = 1 / ((1 - smooth) / factor + smooth);
    }
    divisors.push_back(static_cast<float>(divisor));
  }
  return divisors;
}

GgufBuilder with_divisors(const std::vector<float>& divisors) {
  GgufBuilder builder = gguf_metadata("llama");
  builder.number("llama.attention.key_length", 64).floats("rope_freqs.weight", {divisors.size()}, divisors);
  return builder;
}

TEST_F(GgufConfig, RecognisesTheLlama3ScalingBehindFrequencyDivisors) {
  const std::vector<float> divisors = llama3_divisors(5e5, 32, 8192);
  const ModelConfig config = read_gguf(with_divisors(divisors));
  ASSERT_EQ(config.rope.frequency_divisors.size(), 32U);
  EXPECT_EQ(config.rope.frequency_divisors[31], 32.0);
  EXPECT_EQ(config.rope.scaling, RopeScalingKind::kLlama3);
  EXPECT_EQ(config.rope.factor, 32.0);
  EXPECT_EQ(config.rope.original_max_position_embeddings, 8192);
  EXPECT_TRUE(config.is_ordinary());
  EXPECT_EQ(config.source.at("rope_scaling").at("rope_type"), "llama3");
}

TEST_F(GgufConfig, KeepsDivisorsThatAreNoKnownScaling) {
  std::vector<float> divisors(32, 1.0F);
  divisors[3] = 7.0F;
  divisors[31] = 2.0F;
  const ModelConfig config = read_gguf(with_divisors(divisors));
  EXPECT_EQ(config.rope.scaling, RopeScalingKind::kNone);
  EXPECT_FALSE(config.is_ordinary());
  const ModelConfig again = read(Json(write_config(config, "float32")));
  EXPECT_EQ(again.rope.frequency_divisors, config.rope.frequency_divisors);
}

TEST_F(GgufConfig, RefusesWhatIsNotSupported) {
  expect_gguf_refused(gguf_metadata("gemma5"), {"m.gguf", "gemma5", "llama, deci, qwen2"});
  GgufBuilder experts = gguf_metadata("llama");
  expect_gguf_refused(experts.number("llama.expert_count", 8), {"llama.expert_count", "experts"});
  GgufBuilder scaled = gguf_metadata("qwen2");
  expect_gguf_refused(scaled.text("qwen2.rope.scaling.type", "longrope"), {"qwen2.rope.scaling.type", "linear"});
  GgufBuilder yarn = gguf_metadata("qwen2");
  expect_gguf_refused(yarn.text("qwen2.rope.scaling.type", "yarn"), {"qwen2.rope.scaling.factor", "yarn"});
  GgufBuilder partial = gguf_metadata("llama");
  expect_gguf_refused(partial.number("llama.rope.dimension_count", 4), {"llama.rope.dimension_count", "8"});
  expect_gguf_refused(with_divisors(std::vector<float>(16, 1.0F)), {"rope_freqs.weight", "32 values"});
  expect_gguf_refused(with_divisors(std::vector<float>(32, -1.0F)), {"rope_freqs.weight", "positive"});
}

TEST_F(GgufConfig, NamesMetadataThatAreMissingOrCannotBe) {
  GgufBuilder empty;
  expect_gguf_refused(empty.text("general.architecture", "llama"), {"token_embd.weight"});
  GgufBuilder no_layers;
  no_layers.text("general.architecture", "llama").floats("token_embd.weight", {2, 2}, {1, 2, 3, 4});
  expect_gguf_refused(no_layers, {"\"llama.embedding_length\"", "missing"});
  GgufBuilder many = GgufBuilder();
  many.text("general.architecture", "llama")
      .number("llama.embedding_length", 32)
      .number("llama.feed_forward_length", 8);
  many.number("llama.attention.head_count", 0xffffffffU).floats("token_embd.weight", {2, 2}, {1, 2, 3, 4});
  expect_gguf_refused(many, {"llama.attention.head_count", "4294967295"});
}

}  // namespace
}  // namespace dynslice
