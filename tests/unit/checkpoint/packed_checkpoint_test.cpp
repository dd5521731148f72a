#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "aten.h"
#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/formats/safetensors/packed_weights.h"
#include "dynslice/formats/safetensors/weight_packing.h"
#include "dynslice/model/checkpoint.h"
#include "unit/checkpoint/checkpoint_fixtures.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::expect_error;
using testing::FixtureJson;
using testing::RawTensor;
using testing::TemporaryFolder;
using testing::tensor_named;
using testing::write_folder;

const std::string kPackedQuery = "model.layers.0.self_attn.q_proj";
const std::string kDown = "model.layers.1.mlp.down_proj";

FixtureJson weights(int bits, bool symmetric, FixtureJson group_size) {
  const bool is_channel = group_size.is_null();
  return {{"num_bits", bits},
          {"type", "int"},
          {"symmetric", symmetric},
          {"strategy", is_channel ? "channel" : "group"},
          {"group_size", std::move(group_size)},
          {"actorder", nullptr},
          {"dynamic", false}};
}

// Queries of layer 0: 4 bits, groups of 4, zero points. The last MLP matrix of layer 1: 3 bits, a scale for each row.
FixtureJson packed_config() {
  FixtureJson config = testing::tiny_llama_config();
  config["quantization_config"] = {
      {"quant_method", "compressed-tensors"},
      {"format", "pack-quantized"},
      {"quantization_status", "compressed"},
      {"config_groups",
       {{"a", {{"targets", {"re:.*q_proj"}}, {"weights", weights(4, false, 4)}, {"input_activations", nullptr}}},
        {"b", {{"targets", {kDown}}, {"weights", weights(3, true, nullptr)}}}}},
      {"ignore", {"lm_head"}},
      {"kv_cache_scheme", nullptr},
      {"sparsity_config", FixtureJson::object()},
      {"transform_config", FixtureJson::object()}};
  return config;
}

template <typename T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::string packed_rows(const std::vector<uint8_t>& codes, size_t columns, int bits) {
  std::string bytes;
  for (size_t first = 0; first < codes.size(); first += columns) {
    std::vector<int32_t> words(static_cast<size_t>(packed_words(static_cast<int64_t>(columns), bits)));
    pack_codes({codes.data() + first, columns}, bits, words);
    bytes += bytes_of(words);
  }
  return bytes;
}

class PackedFolder : public ::testing::Test {
 protected:
  PackedFolder() {
    std::mt19937 engine(1);
    const auto random = [&](size_t count, unsigned below) {
      std::vector<uint8_t> codes(count);
      for (uint8_t& code : codes) code = static_cast<uint8_t>(engine() % below);
      return codes;
    };
    query_codes_ = random(64, 16);
    query_zeros_ = random(16, 16);  // [8, 2]
    down_codes_ = random(48, 8);
    std::erase_if(tensors_,
                  [](const RawTensor& t) { return t.name == kPackedQuery + ".weight" || t.name == kDown + ".weight"; });
    std::vector<uint8_t> columns;  // of the zero points, one after the other
    for (size_t group = 0; group < 2; ++group) {
      for (size_t row = 0; row < 8; ++row) columns.push_back(query_zeros_[row * 2 + group]);
    }
    tensors_.push_back({kPackedQuery + ".weight_packed", "I32", {8, 1}, packed_rows(query_codes_, 8, 4)});
    tensors_.push_back({kPackedQuery + ".weight_scale", "F32", {8, 2}, bytes_of(testing::random_values(16, 50))});
    tensors_.push_back({kPackedQuery + ".weight_zero_point", "I32", {1, 2}, packed_rows(columns, 8, 4)});
    tensors_.push_back({kPackedQuery + ".weight_shape", "I64", {2}, bytes_of(std::vector<int64_t>{8, 8})});
    tensors_.push_back({kDown + ".weight_packed", "I32", {8, 1}, packed_rows(down_codes_, 6, 3)});
    tensors_.push_back({kDown + ".weight_scale", "F32", {8, 1}, bytes_of(testing::random_values(8, 51))});
    tensors_.push_back({kDown + ".weight_shape", "I64", {2}, bytes_of(std::vector<int64_t>{8, 6})});
  }

  std::unique_ptr<Checkpoint> open() {
    write_folder(folder_.path(), config_, tensors_);
    return open_checkpoint(folder_.path());
  }
  RawTensor& part(const std::string& module, const std::string& name) {
    return tensor_named(tensors_, module + ".weight_" + name);
  }
  void remove(const std::string& name) {
    std::erase_if(tensors_, [&](const RawTensor& tensor) { return tensor.name == name; });
  }
  FixtureJson& group(const std::string& name) { return config_["quantization_config"]["config_groups"][name]; }

  std::vector<float> scales_of(const std::string& module) {
    std::vector<float> scales(part(module, "scale").bytes.size() / 4);
    std::memcpy(scales.data(), part(module, "scale").bytes.data(), scales.size() * 4);
    return scales;
  }
  at::Tensor query() {
    std::vector<float> values;
    const std::vector<float> scales = scales_of(kPackedQuery);
    for (size_t i = 0; i < 64; ++i) {
      const size_t at = i / 8 * 2 + i % 8 / 4;
      values.push_back(static_cast<float>(query_codes_[i] - query_zeros_[at]) * scales[at]);
    }
    return at::tensor(values).view({8, 8});
  }
  at::Tensor down() {
    std::vector<float> values;
    const std::vector<float> scales = scales_of(kDown);
    for (size_t i = 0; i < 48; ++i) values.push_back(static_cast<float>(down_codes_[i] - 4) * scales[i / 6]);
    return at::tensor(values).view({8, 6});
  }

  TemporaryFolder folder_;
  FixtureJson config_ = packed_config();
  std::vector<RawTensor> tensors_ = testing::tiny_llama_tensors();
  std::vector<uint8_t> query_codes_, query_zeros_, down_codes_;
};

TEST_F(PackedFolder, ShowsWeightsInTheirOwnShapesAndLoadsTheirValues) {
  const auto checkpoint = open();
  const TensorInfo* info = checkpoint->find(kPackedQuery + ".weight");
  ASSERT_NE(info, nullptr);
  EXPECT_EQ(info->shape, (std::vector<int64_t>{8, 8}));
  EXPECT_EQ(info->dtype, "I4");
  EXPECT_EQ(info->bytes, 8U * 4 + 16 * 4 + 2 * 4);
  EXPECT_EQ(checkpoint->find(kDown + ".weight")->dtype, "I3");
  for (const TensorInfo& tensor : checkpoint->tensors()) EXPECT_TRUE(tensor.name.ends_with(".weight")) << tensor.name;
  EXPECT_TRUE(at::equal(checkpoint->load(kPackedQuery + ".weight", {8, 8}, at::kFloat), query()));
  EXPECT_TRUE(at::equal(checkpoint->load(kDown + ".weight", {8, 6}, at::kFloat), down()));
}

TEST_F(PackedFolder, GivesRowsAndConvertsThem) {
  const auto checkpoint = open();
  const at::Tensor rows = checkpoint->load_rows(kPackedQuery + ".weight", {8, 8}, 3, 6, at::kBFloat16);
  EXPECT_TRUE(at::equal(rows, query().narrow(0, 3, 3).to(at::kBFloat16)));
  EXPECT_EQ(checkpoint->load_rows(kPackedQuery + ".weight", {8, 8}, 5, 5, at::kFloat).numel(), 0);
}

TEST_F(PackedFolder, ComputesInTheDtypeOfTheScales) {
  const at::Tensor scales = at::tensor(scales_of(kPackedQuery)).view({8, 2}).to(at::kBFloat16);
  RawTensor& stored = part(kPackedQuery, "scale");
  stored.dtype = "BF16";
  stored.bytes.assign(static_cast<const char*>(scales.const_data_ptr()), scales.nbytes());
  std::vector<float> differences;
  for (size_t i = 0; i < 64; ++i)
    differences.push_back(static_cast<float>(query_codes_[i] - query_zeros_[i / 8 * 2 + i % 8 / 4]));
  const at::Tensor expected =
      (at::tensor(differences).view({8, 2, 4}).to(at::kBFloat16) * scales.unsqueeze(2)).view({8, 8});
  EXPECT_TRUE(at::equal(open()->load(kPackedQuery + ".weight", {8, 8}, at::kBFloat16), expected));
}

TEST_F(PackedFolder, StoresWhatItsScalesAndOtherWeightsAre) {
  for (RawTensor& tensor : tensors_) {
    if (tensor.dtype != "F32") continue;
    tensor.dtype = "F16";
    tensor.bytes.assign(tensor.bytes.size() / 2, '\0');
  }
  EXPECT_EQ(open()->storage_dtype(), at::kHalf);
}

TEST_F(PackedFolder, TakesZeroPointsThatAreNotPacked) {
  RawTensor& zeros = part(kPackedQuery, "zero_point");
  zeros = {zeros.name, "I8", {8, 2}, ""};
  for (const uint8_t zero : query_zeros_) zeros.bytes.push_back(static_cast<char>(zero - 8));
  EXPECT_TRUE(at::equal(open()->load(kPackedQuery + ".weight", {8, 8}, at::kFloat), query()));
}

TEST_F(PackedFolder, TakesAWeightThatIsNotPackedThoughItCouldBe) {
  group("b")["targets"] = {"Linear"};
  EXPECT_EQ(open()->find("model.layers.0.mlp.down_proj.weight")->dtype, "F32");
}

TEST_F(PackedFolder, IsWrittenAgainWithoutTheKey) {
  const auto checkpoint = open();
  EXPECT_TRUE(checkpoint->config().packing.has_value());
  EXPECT_FALSE(write_config(checkpoint->config(), "float32").contains("quantization_config"));
}

TEST_F(PackedFolder, NamesTheFileAndTheTensorThatDoesNotFit) {
  const auto refused = [&](const std::string& name, const std::vector<std::string>& words, const auto& damage) {
    const std::vector<RawTensor> tensors = tensors_;
    const FixtureJson config = config_;
    damage();
    std::vector<std::string> parts = {"model.safetensors", name};
    parts.insert(parts.end(), words.begin(), words.end());
    expect_error(ErrorKind::kBadInput, parts, [&] { open(); });
    tensors_ = tensors;
    config_ = config;
  };
  const auto resized = [&](const std::string& module, const std::string& name, std::vector<int64_t> shape) {
    RawTensor& tensor = part(module, name);
    size_t size = tensor.dtype == "I64" ? 8 : 4;
    for (const int64_t n : shape) size *= static_cast<size_t>(n);
    tensor.shape = std::move(shape);
    tensor.bytes.assign(size, '\1');
  };
  const auto says = [&](std::vector<int64_t> shape) { part(kPackedQuery, "shape").bytes = bytes_of(shape); };
  const std::string packed = kPackedQuery + ".weight_packed", scale = kPackedQuery + ".weight_scale",
                    zero = kPackedQuery + ".weight_zero_point", shape = kPackedQuery + ".weight_shape";
  refused(packed, {scale}, [&] { remove(scale); });
  refused(packed, {shape}, [&] { remove(shape); });
  refused(packed, {zero, "not symmetric"}, [&] { remove(zero); });
  refused(zero, {"symmetric"}, [&] { group("a")["weights"]["symmetric"] = true; });
  refused(packed, {"3 bits", "[8, 1]"}, [&] {
    group("a")["weights"]["num_bits"] = 3;
    resized(kPackedQuery, "packed", {8, 5});
  });
  refused(packed, {"8 bits", "[8, 2]"}, [&] { group("a")["weights"]["num_bits"] = 8; });
  refused(packed, {"groups of 3"}, [&] { group("a")["weights"]["group_size"] = 3; });
  refused(scale, {"[8, 1]"}, [&] { group("a")["weights"]["group_size"] = 8; });
  refused(scale, {"I32"}, [&] { part(kPackedQuery, "scale").dtype = "I32"; });
  refused(zero, {"[2, 2]", "[1, 2]"}, [&] { resized(kPackedQuery, "zero_point", {2, 2}); });
  refused(zero, {"F32"}, [&] { part(kPackedQuery, "zero_point").dtype = "F32"; });
  refused(packed, {"F32"}, [&] { part(kPackedQuery, "packed").dtype = "F32"; });
  refused(packed, {"[8]"}, [&] { resized(kPackedQuery, "packed", {8}); });
  refused(shape, {"[3]"}, [&] { resized(kPackedQuery, "shape", {3}); });
  refused(shape, {"F32"}, [&] {
    part(kPackedQuery, "shape").dtype = "F32";
    part(kPackedQuery, "shape").bytes.resize(8);
  });
  for (const std::vector<int64_t>& wrong : std::vector<std::vector<int64_t>>{
           {8, 0}, {0, 8}, {-8, 8}, {8, -1}, {4, 8}, {8, INT64_MAX}, {INT64_MAX, INT64_MAX}, {8, int64_t{1} << 40}}) {
    refused(shape, {"says"}, [&] { says(wrong); });
  }
  refused(packed, {"no group"}, [&] { group("a")["targets"] = {"re:.*k_proj"}; });
  refused(packed, {"no group"}, [&] { config_["quantization_config"]["ignore"].push_back(kPackedQuery); });
  refused(packed, {kPackedQuery + ".weight"},
          [&] { tensors_.push_back({kPackedQuery + ".weight", "F32", {1}, "1234"}); });
  refused(kPackedQuery + ".weight_g_idx", {"reorders"},
          [&] { tensors_.push_back({kPackedQuery + ".weight_g_idx", "I32", {1}, "1234"}); });
}

TEST_F(PackedFolder, RefusesAShapeThatTheConfigurationDoesNotAskFor) {
  part(kDown, "shape").bytes = bytes_of(std::vector<int64_t>{8, 7});
  expect_error(ErrorKind::kBadInput, {kDown + ".weight", "[8, 7]", "[8, 6]"}, [&] { open(); });
}

TEST_F(PackedFolder, RefusesScalesThatAreNotFinite) {
  part(kPackedQuery, "scale").bytes.replace(0, 4, testing::float_bytes({NAN}));
  const auto checkpoint = open();
  expect_error(ErrorKind::kBadInput, {"model.safetensors", kPackedQuery + ".weight", "NaN"},
               [&] { checkpoint->load(kPackedQuery + ".weight", {8, 8}, at::kFloat); });
}

TEST_F(PackedFolder, NamesTheKeyOfWhatItCannotRead) {
  const auto refused = [&](const std::vector<std::string>& words, const auto& change) {
    const FixtureJson config = config_;
    change(config_["quantization_config"]);
    std::vector<std::string> parts = {"config.json", "quantization_config"};
    parts.insert(parts.end(), words.begin(), words.end());
    expect_error(ErrorKind::kBadInput, parts, [&] { open(); });
    config_ = config;
  };
  refused({"quant_method", "gptq"}, [](FixtureJson& q) { q["quant_method"] = "gptq"; });
  refused({"quant_method"}, [](FixtureJson& q) { q.erase("quant_method"); });
  refused({"format", "nvfp4"}, [](FixtureJson& q) { q["format"] = "nvfp4-pack-quantized"; });
  refused({"format"}, [](FixtureJson& q) { q["format"] = "mixed-precision"; });  // and the groups name none
  refused({"quantization_status"}, [](FixtureJson& q) { q["quantization_status"] = "initialized"; });
  refused({"kv_cache_scheme"}, [](FixtureJson& q) { q["kv_cache_scheme"] = {{"num_bits", 8}}; });
  refused({"sparsity_config", "format"}, [](FixtureJson& q) { q["sparsity_config"] = {{"format", "marlin-24"}}; });
  refused({"transform_config"},
          [](FixtureJson& q) { q["transform_config"] = {{"config_groups", {{"R1", {{"type", "hadamard"}}}}}}; });
  refused({"config_groups"}, [](FixtureJson& q) { q.erase("config_groups"); });
  refused({"\"a\""}, [](FixtureJson& q) { q["config_groups"]["a"] = {"Linear"}; });
  refused({"ignore"}, [](FixtureJson& q) { q["ignore"] = "lm_head"; });
  refused({"ignore"}, [](FixtureJson& q) { q["ignore"] = {1}; });
  refused({"regular expression", "(("}, [](FixtureJson& q) { q["ignore"] = {"re:(("}; });
  refused({"regular expression", "too long"}, [](FixtureJson& q) { q["ignore"] = {"re:([a-z._0-9]+)*[!?]"}; });
  const auto in_group = [&](const std::string& key, FixtureJson value) {
    refused({key}, [&](FixtureJson& q) { q["config_groups"]["a"][key] = std::move(value); });
  };
  in_group("input_activations", {{"num_bits", 8}});
  in_group("output_activations", {{"num_bits", 8}});
  in_group("targets", FixtureJson::array());
  in_group("format", "int-quantized");
  in_group("weights", nullptr);
  const auto in_weights = [&](const std::string& key, FixtureJson value) {
    refused({"weights", key}, [&](FixtureJson& q) { q["config_groups"]["a"]["weights"][key] = std::move(value); });
  };
  in_weights("num_bits", 0);
  in_weights("num_bits", 9);
  in_weights("num_bits", "4");
  in_weights("type", "float");
  in_weights("dynamic", true);
  in_weights("strategy", "block");
  in_weights("strategy", "channel");  // and a group size
  in_weights("group_size", 0);
  in_weights("group_size", nullptr);
  in_weights("actorder", "group");
  in_weights("actorder", true);
  in_weights("block_structure", {128, 128});
}

TEST_F(PackedFolder, NeverCrashesWhateverByteIsWrong) {
  open();
  std::string bytes = testing::safetensors_bytes(tensors_);
  const uint64_t header = 8 + testing::safetensors_header(tensors_).dump().size();
  size_t whole = 0;
  for (size_t i = 8; i < header; ++i) {
    const char kept = bytes[i];
    bytes[i] = static_cast<char>(kept ^ 5);
    testing::write_bytes(folder_ / "model.safetensors", bytes);
    try {
      const auto checkpoint = open_checkpoint(folder_.path());
      for (const TensorInfo& tensor : checkpoint->tensors()) {
        if (tensor.shape.size() == 2) checkpoint->load(tensor.name, tensor.shape, at::kFloat);
      }
      ++whole;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kBadInput) << error.what();
    }
    bytes[i] = kept;
  }
  EXPECT_LT(whole, header / 4);
}

TEST(PackingGroups, AreChosenByNameThenPatternThenClass) {
  WeightPacking packing;
  packing.groups = {{"class", {"Linear"}}, {"pattern", {"re:model\\.layers\\.1\\."}}, {"name", {kDown}}};
  packing.ignored = {"lm_head", "re:.*o_proj$"};
  const auto group = [&](const std::string& module) {
    const PackingGroup* found = packing_group_of(packing, module);
    return found == nullptr ? std::string("none") : found->name;
  };
  EXPECT_EQ(group(kPackedQuery), "class");
  EXPECT_EQ(group("model.layers.1.mlp.up_proj"), "pattern");
  EXPECT_EQ(group("x.model.layers.1.mlp.up_proj"), "class");  // a match begins at the beginning
  EXPECT_EQ(group(kDown), "name");
  EXPECT_EQ(group("lm_head"), "none");
  EXPECT_EQ(group("model.layers.1.self_attn.o_proj"), "none");
}

}  // namespace
}  // namespace dynslice
