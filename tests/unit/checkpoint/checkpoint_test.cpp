#include "dynslice/model/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <limits>

#include "aten.h"
#include "dynslice/checkpoint/open_checkpoint.h"
#include "unit/checkpoint/checkpoint_fixtures.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::expect_error;
using testing::FixtureJson;
using testing::float_bytes;
using testing::GgufBuilder;
using testing::interleave;
using testing::random_values;
using testing::RawTensor;
using testing::safetensors_bytes;
using testing::TemporaryFolder;
using testing::tensor_named;
using testing::tiny_llama_config;
using testing::tiny_llama_tensors;
using testing::write_bytes;
using testing::write_folder;

const std::string kQuery = "model.layers.1.self_attn.q_proj.weight";

at::Tensor tensor_of(const RawTensor& tensor) {
  return at::from_blob(const_cast<char*>(tensor.bytes.data()), tensor.shape, at::kFloat).clone();
}

std::vector<float> values_of(const RawTensor& tensor) {
  std::vector<float> values(tensor.bytes.size() / sizeof(float));
  std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
  return values;
}

class CheckpointFolder : public ::testing::Test {
 protected:
  std::unique_ptr<Checkpoint> open() {
    write_folder(folder_.path(), config_, tensors_);
    return open_checkpoint(folder_.path());
  }
  void expect_open_refused(const std::vector<std::string>& parts) {
    expect_error(ErrorKind::kBadInput, parts, [&] { open(); });
  }

  TemporaryFolder folder_;
  FixtureJson config_ = tiny_llama_config();
  std::vector<RawTensor> tensors_ = tiny_llama_tensors();
};

TEST_F(CheckpointFolder, GivesEveryTensorAsStored) {
  const auto checkpoint = open();
  EXPECT_EQ(checkpoint->tensors().size(), tensors_.size());
  for (const RawTensor& tensor : tensors_) {
    EXPECT_TRUE(checkpoint->load(tensor.name, tensor.shape, at::kFloat).equal(tensor_of(tensor))) << tensor.name;
  }
  const TensorInfo* info = checkpoint->find(kQuery);
  ASSERT_NE(info, nullptr);
  EXPECT_EQ(info->dtype, "F32");
  EXPECT_EQ(info->bytes, 256U);
  EXPECT_EQ(checkpoint->find("nothing"), nullptr);
  EXPECT_EQ(checkpoint->storage_dtype(), at::kFloat);
  EXPECT_EQ(checkpoint->config().vocab_size, 12);
}

TEST_F(CheckpointFolder, GivesMemoryOfItsOwn) {
  const auto checkpoint = open();
  const at::Tensor first = checkpoint->load(kQuery, {8, 8}, at::kFloat);
  first.zero_();
  EXPECT_TRUE(checkpoint->load(kQuery, {8, 8}, at::kFloat).equal(tensor_of(tensor_named(tensors_, kQuery))));
}

TEST_F(CheckpointFolder, ConvertsBetweenAllDtypes) {
  const at::Tensor query = tensor_of(tensor_named(tensors_, kQuery));
  for (const auto& [name, stored] :
       {std::pair("F32", at::kFloat), std::pair("F16", at::kHalf), std::pair("BF16", at::kBFloat16)}) {
    const at::Tensor narrowed = query.to(stored);
    RawTensor& tensor = tensor_named(tensors_, kQuery);
    tensor.dtype = name;
    tensor.bytes.assign(static_cast<const char*>(narrowed.data_ptr()), narrowed.nbytes());
    const auto checkpoint = open();
    for (const at::ScalarType wanted : {at::kFloat, at::kHalf, at::kBFloat16}) {
      const at::Tensor loaded = checkpoint->load(kQuery, {8, 8}, wanted);
      EXPECT_EQ(loaded.scalar_type(), wanted);
      EXPECT_TRUE(loaded.is_contiguous());
      EXPECT_TRUE(loaded.equal(narrowed.to(wanted)));
    }
  }
}

TEST_F(CheckpointFolder, ReadsDataThatIsNotAligned) {
  // One byte before everything else moves all tensors to odd places.
  tensors_.insert(tensors_.begin(), {"odd", "U8", {1}, "x"});
  const auto checkpoint = open();
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor expected = tensor_of(tensor_named(tensors_, kQuery)).to(dtype);
    EXPECT_TRUE(checkpoint->load(kQuery, {8, 8}, dtype).equal(expected));
  }
}

TEST_F(CheckpointFolder, GivesRowsOfAMatrix) {
  const auto checkpoint = open();
  const at::Tensor whole = tensor_of(tensor_named(tensors_, "lm_head.weight"));
  EXPECT_TRUE(checkpoint->load_rows("lm_head.weight", {12, 8}, 3, 7, at::kFloat).equal(whole.narrow(0, 3, 4)));
  EXPECT_EQ(checkpoint->load_rows("lm_head.weight", {12, 8}, 5, 5, at::kFloat).size(0), 0);
  EXPECT_THROW(checkpoint->load_rows("lm_head.weight", {12, 8}, 3, 13, at::kFloat), std::logic_error);
}

TEST_F(CheckpointFolder, ReadsShardsThroughTheirIndex) {
  write_folder(folder_.path(), config_, tensors_);
  std::filesystem::remove(folder_ / "model.safetensors");
  const std::vector<RawTensor> first(tensors_.begin(), tensors_.begin() + 5),
      second(tensors_.begin() + 5, tensors_.end());
  write_bytes(folder_ / "a.safetensors", safetensors_bytes(first));
  write_bytes(folder_ / "b.safetensors", safetensors_bytes(second));
  FixtureJson index = {{"weight_map", FixtureJson::object()}};
  for (const RawTensor& tensor : first) index["weight_map"][tensor.name] = "a.safetensors";
  for (const RawTensor& tensor : second) index["weight_map"][tensor.name] = "b.safetensors";
  write_bytes(folder_ / "model.safetensors.index.json", index.dump());
  const auto checkpoint = open_checkpoint(folder_.path());
  for (const RawTensor& tensor : tensors_) {
    EXPECT_TRUE(checkpoint->load(tensor.name, tensor.shape, at::kFloat).equal(tensor_of(tensor)));
  }
  EXPECT_EQ(checkpoint->files().size(), 4U);

  index["weight_map"][tensors_[0].name] = "b.safetensors";
  write_bytes(folder_ / "model.safetensors.index.json", index.dump());
  expect_error(ErrorKind::kBadInput, {tensors_[0].name, "b.safetensors", "does not hold"},
               [&] { open_checkpoint(folder_.path()); });
  for (const FixtureJson& name :
       {FixtureJson("../a.safetensors"), FixtureJson("/etc/passwd"), FixtureJson(3), FixtureJson("")}) {
    index["weight_map"][tensors_[0].name] = name;
    write_bytes(folder_ / "model.safetensors.index.json", index.dump());
    expect_error(ErrorKind::kBadInput, {"index.json", "plain name"}, [&] { open_checkpoint(folder_.path()); });
  }
  index["weight_map"][tensors_[0].name] = "absent.safetensors";
  write_bytes(folder_ / "model.safetensors.index.json", index.dump());
  expect_error(ErrorKind::kMissingData, {"absent.safetensors"}, [&] { open_checkpoint(folder_.path()); });
}

TEST_F(CheckpointFolder, NamesTheTensorThatIsMissing) {
  std::erase_if(tensors_, [](const RawTensor& tensor) { return tensor.name == kQuery; });
  expect_open_refused({folder_.path().string(), kQuery, "missing"});
}

TEST_F(CheckpointFolder, NamesTheTensorOfAnotherShapeAndBothShapes) {
  tensor_named(tensors_, kQuery).shape = {4, 16};
  expect_open_refused({kQuery, "[4, 16]", "[8, 8]"});
  tensor_named(tensors_, kQuery).shape = {8, 8};
  const auto checkpoint = open();
  expect_error(ErrorKind::kBadInput, {"model.safetensors", kQuery, "[8, 8]", "[9, 8]"},
               [&] { checkpoint->load(kQuery, {9, 8}, at::kFloat); });
  expect_error(ErrorKind::kBadInput, {"other.weight", "missing"},
               [&] { checkpoint->load("other.weight", {1}, at::kFloat); });
}

// Phi-3's way: query, key and value rows of a layer in one tensor.
TEST_F(CheckpointFolder, FindsTensorsInWhatTheFileHasAsOne) {
  const std::vector<RawTensor> apart = tensors_;
  config_["model_type"] = "phi3";
  const auto fuse = [&](const std::string& prefix, const std::string& whole, const std::vector<std::string>& parts) {
    RawTensor fused = tensor_named(tensors_, prefix + parts.front() + ".weight");
    fused.name = prefix + whole + ".weight";
    for (size_t i = 1; i < parts.size(); ++i) {
      const RawTensor& part = tensor_named(tensors_, prefix + parts[i] + ".weight");
      fused.bytes += part.bytes;
      fused.shape.front() += part.shape.front();
    }
    for (const std::string& part : parts)
      std::erase_if(tensors_, [&](const RawTensor& tensor) { return tensor.name == prefix + part + ".weight"; });
    tensors_.push_back(fused);
  };
  for (const char* layer : {"model.layers.0.", "model.layers.1."}) {
    fuse(layer, "self_attn.qkv_proj", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"});
    fuse(layer, "mlp.gate_up_proj", {"mlp.gate_proj", "mlp.up_proj"});
  }
  const auto checkpoint = open();
  EXPECT_EQ(checkpoint->tensors().size(), apart.size());
  for (const RawTensor& tensor : apart) {
    EXPECT_TRUE(checkpoint->load(tensor.name, tensor.shape, at::kFloat).equal(tensor_of(tensor))) << tensor.name;
    EXPECT_EQ(checkpoint->find(tensor.name)->bytes, tensor.bytes.size());
  }
  EXPECT_TRUE(checkpoint->load_rows(kQuery, {8, 8}, 2, 5, at::kFloat)
                  .equal(checkpoint->load(kQuery, {8, 8}, at::kFloat).narrow(0, 2, 3)));

  RawTensor& fused = tensor_named(tensors_, "model.layers.1.self_attn.qkv_proj.weight");
  fused.shape = {fused.shape[0] * 2, fused.shape[1] / 2};
  expect_open_refused({"model.safetensors", "model.layers.1.self_attn.qkv_proj.weight", "[32, 4]", "[16, 8]"});
}

TEST_F(CheckpointFolder, RefusesADtypeItCannotComputeWith) {
  RawTensor& tensor = tensor_named(tensors_, kQuery);
  tensor.dtype = "F8_E4M3";
  tensor.bytes.resize(64);
  const auto checkpoint = open();
  EXPECT_EQ(checkpoint->find(kQuery)->dtype, "F8_E4M3");
  expect_error(ErrorKind::kBadInput, {"model.safetensors", kQuery, "F8_E4M3", "BF16"},
               [&] { checkpoint->load(kQuery, {8, 8}, at::kFloat); });
}

TEST_F(CheckpointFolder, RefusesNanAndInfWherever) {
  for (const float bad :
       {std::nanf(""), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    for (const size_t place : {size_t{0}, size_t{37}, size_t{63}}) {
      tensors_ = tiny_llama_tensors();
      std::memcpy(tensor_named(tensors_, kQuery).bytes.data() + place * sizeof bad, &bad, sizeof bad);
      const auto checkpoint = open();
      for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
        expect_error(ErrorKind::kBadInput, {"model.safetensors", kQuery, "NaN or Inf"},
                     [&] { checkpoint->load(kQuery, {8, 8}, dtype); });
      }
    }
  }
}

TEST_F(CheckpointFolder, AcceptsFiniteValuesWhoseSumOverflows) {
  const std::vector<float> large(64, 3e38F);
  tensor_named(tensors_, kQuery).bytes = float_bytes(large);
  const auto checkpoint = open();
  EXPECT_EQ(checkpoint->load(kQuery, {8, 8}, at::kFloat).max().item<float>(), 3e38F);
  expect_error(ErrorKind::kBadInput, {kQuery, "Half"}, [&] { checkpoint->load(kQuery, {8, 8}, at::kHalf); });
}

TEST_F(CheckpointFolder, RefusesABiasThatWouldBeLeftOut) {
  tensors_.push_back({"model.layers.0.self_attn.q_proj.bias", "F32", {8}, std::string(32, '\0')});
  expect_open_refused({"q_proj.bias", "llama"});
}

TEST_F(CheckpointFolder, IgnoresTensorsThatNothingAsksFor) {
  tensors_.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", "F32", {2}, std::string(8, '\0')});
  EXPECT_EQ(open()->tensors().size(), tensors_.size());
}

TEST_F(CheckpointFolder, SaysWhatIsNotThere) {
  expect_error(ErrorKind::kMissingData, {"absent", "does not exist"}, [&] { open_checkpoint(folder_ / "absent"); });
  expect_error(ErrorKind::kMissingData, {"config.json", ".gguf"}, [&] { open_checkpoint(folder_.path()); });
  write_bytes(folder_ / "config.json", config_.dump());
  expect_error(ErrorKind::kMissingData, {"model.safetensors"}, [&] { open_checkpoint(folder_.path()); });
}

TEST_F(CheckpointFolder, RefusesAFileItMayNotRead) {
  open();
  ::chmod((folder_ / "model.safetensors").c_str(), 0);
  // Root may read everything: become nobody for a moment.
  const bool is_root = ::geteuid() == 0;
  if (is_root) {
    ::chmod(folder_.path().c_str(), 0755);
    ASSERT_EQ(::seteuid(65534), 0);
  }
  expect_error(ErrorKind::kBadInput, {"model.safetensors", "denied"}, [&] { open_checkpoint(folder_.path()); });
  if (is_root) {
    ASSERT_EQ(::seteuid(0), 0);
  }
}

TEST_F(CheckpointFolder, RefusesAFolderWhereAFileShouldBe) {
  open();
  std::filesystem::remove(folder_ / "model.safetensors");
  std::filesystem::create_directory(folder_ / "model.safetensors");
  expect_error(ErrorKind::kBadInput, {"model.safetensors", "regular file"}, [&] { open_checkpoint(folder_.path()); });
}

// ---- GGUF

std::string gguf_name(const std::string& name) {
  static const std::vector<std::pair<std::string, std::string>> kNames = {
      {"self_attn.q_proj", "attn_q"},   {"self_attn.k_proj", "attn_k"},
      {"self_attn.v_proj", "attn_v"},   {"self_attn.o_proj", "attn_output"},
      {"input_layernorm", "attn_norm"}, {"post_attention_layernorm", "ffn_norm"},
      {"mlp.gate_proj", "ffn_gate"},    {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"},    {"model.embed_tokens", "token_embd"},
      {"model.norm", "output_norm"},    {"lm_head", "output"},
      {"model.layers", "blk"}};
  std::string out = name;
  for (const auto& [from, to] : kNames) {
    const size_t at = out.find(from);
    if (at != std::string::npos) out.replace(at, from.size(), to);
  }
  return out;
}

// The tiny llama as the converter writes it.
GgufBuilder tiny_gguf(const std::string& architecture, const std::vector<RawTensor>& tensors) {
  GgufBuilder builder;
  const std::string& a = architecture;
  builder.text("general.architecture", a).number(a + ".block_count", 2).number(a + ".embedding_length", 8);
  builder.number(a + ".feed_forward_length", 6).number(a + ".attention.head_count", 2);
  builder.number(a + ".attention.head_count_kv", 1).number(a + ".context_length", 64);
  builder.real(a + ".attention.layer_norm_rms_epsilon", 1e-5F).real(a + ".rope.freq_base", 1e4F);
  for (const RawTensor& tensor : tensors) {
    std::vector<float> values = values_of(tensor);
    const size_t columns = tensor.shape.size() == 2 ? static_cast<size_t>(tensor.shape[1]) : 1;
    if (a == "llama" && tensor.name.find("q_proj") != std::string::npos) values = interleave(values, 2, columns);
    if (a == "llama" && tensor.name.find("k_proj") != std::string::npos) values = interleave(values, 1, columns);
    builder.floats(gguf_name(tensor.name), {tensor.shape.begin(), tensor.shape.end()}, values);
  }
  return builder;
}

class CheckpointGguf : public ::testing::Test {
 protected:
  std::unique_ptr<Checkpoint> open(const GgufBuilder& builder) {
    write_bytes(path_, builder.bytes());
    return open_checkpoint(path_);
  }

  TemporaryFolder folder_;
  std::filesystem::path path_ = folder_ / "model.gguf";
  std::vector<RawTensor> tensors_ = tiny_llama_tensors();
};

TEST_F(CheckpointGguf, GivesHuggingFacesNamesShapesAndRowOrder) {
  const auto checkpoint = open(tiny_gguf("llama", tensors_));
  EXPECT_EQ(checkpoint->tensors().size(), tensors_.size());
  EXPECT_FALSE(checkpoint->config().tie_word_embeddings);
  for (const RawTensor& tensor : tensors_) {
    EXPECT_TRUE(checkpoint->load(tensor.name, tensor.shape, at::kFloat).equal(tensor_of(tensor))) << tensor.name;
  }
}

TEST_F(CheckpointGguf, UndoesTheRowOrderForAnyRangeOfRows) {
  const auto checkpoint = open(tiny_gguf("llama", tensors_));
  const at::Tensor whole = tensor_of(tensor_named(tensors_, kQuery));
  for (int64_t begin = 0; begin < 8; ++begin) {
    for (int64_t end = begin + 1; end <= 8; ++end) {
      EXPECT_TRUE(
          checkpoint->load_rows(kQuery, {8, 8}, begin, end, at::kFloat).equal(whole.narrow(0, begin, end - begin)));
    }
  }
}

TEST_F(CheckpointGguf, UndoesTheRowOrderOfBiases) {
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    tensors_.push_back({layer + "self_attn.q_proj.bias", "F32", {8}, float_bytes(random_values(8, 70))});
    tensors_.push_back({layer + "self_attn.k_proj.bias", "F32", {4}, float_bytes(random_values(4, 71))});
    tensors_.push_back({layer + "self_attn.v_proj.bias", "F32", {4}, float_bytes(random_values(4, 72))});
    tensors_.push_back({layer + "self_attn.o_proj.bias", "F32", {8}, float_bytes(random_values(8, 73))});
  }
  const auto checkpoint = open(tiny_gguf("llama", tensors_));
  EXPECT_TRUE(checkpoint->config().qkv_bias && checkpoint->config().o_bias);
  for (const RawTensor& tensor : tensors_) {
    EXPECT_TRUE(checkpoint->load(tensor.name, tensor.shape, at::kFloat).equal(tensor_of(tensor))) << tensor.name;
  }
}

TEST_F(CheckpointGguf, LeavesQwen2sRowsWhereTheyAre) {
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    tensors_.push_back({layer + "self_attn.q_proj.bias", "F32", {8}, float_bytes(random_values(8, 70))});
    tensors_.push_back({layer + "self_attn.k_proj.bias", "F32", {4}, float_bytes(random_values(4, 71))});
    tensors_.push_back({layer + "self_attn.v_proj.bias", "F32", {4}, float_bytes(random_values(4, 72))});
  }
  const auto checkpoint = open(tiny_gguf("qwen2", tensors_));
  for (const RawTensor& tensor : tensors_) {
    EXPECT_TRUE(checkpoint->load(tensor.name, tensor.shape, at::kFloat).equal(tensor_of(tensor))) << tensor.name;
  }
}

TEST_F(CheckpointGguf, ConvertsToTheDtypeThatIsAskedFor) {
  const auto checkpoint = open(tiny_gguf("llama", tensors_));
  const at::Tensor expected = tensor_of(tensor_named(tensors_, kQuery));
  EXPECT_TRUE(checkpoint->load(kQuery, {8, 8}, at::kBFloat16).equal(expected.to(at::kBFloat16)));
  EXPECT_TRUE(checkpoint->load(kQuery, {8, 8}, at::kHalf).equal(expected.to(at::kHalf)));
}

TEST_F(CheckpointGguf, TiesTheHeadWhenThereIsNoOutputMatrix) {
  tensors_.pop_back();
  const auto checkpoint = open(tiny_gguf("llama", tensors_));
  EXPECT_TRUE(checkpoint->config().tie_word_embeddings);
  EXPECT_EQ(checkpoint->find("lm_head.weight"), nullptr);
}

TEST_F(CheckpointGguf, IsFoundInAFolderWhereItIsAlone) {
  open(tiny_gguf("llama", tensors_));
  EXPECT_EQ(open_checkpoint(folder_.path())->path(), path_);
  std::filesystem::copy_file(path_, folder_ / "second.gguf");
  expect_error(ErrorKind::kMissingData, {"exactly one"}, [&] { open_checkpoint(folder_.path()); });
}

TEST_F(CheckpointGguf, NamesTensorsThatAreMissingMisshapenOrNotFinite) {
  std::vector<RawTensor> missing = tensors_;
  missing.erase(missing.begin() + 3);
  expect_error(ErrorKind::kBadInput, {path_.string(), tensors_[3].name, "missing"},
               [&] { open(tiny_gguf("llama", missing)); });
  std::vector<RawTensor> misshapen = tensors_;
  tensor_named(misshapen, kQuery) = {kQuery, "F32", {4, 8}, float_bytes(random_values(32, 9))};
  expect_error(ErrorKind::kBadInput, {"blk.1.attn_q.weight", "4 rows", "8"},
               [&] { open(tiny_gguf("llama", misshapen)); });
  std::vector<RawTensor> infinite = tensors_;
  const float inf = std::numeric_limits<float>::infinity();
  std::memcpy(tensor_named(infinite, kQuery).bytes.data() + 4, &inf, 4);
  const auto checkpoint = open(tiny_gguf("llama", infinite));
  expect_error(ErrorKind::kBadInput, {path_.string(), kQuery, "NaN or Inf"},
               [&] { checkpoint->load(kQuery, {8, 8}, at::kFloat); });
}

TEST_F(CheckpointGguf, NeverCrashesWhateverByteIsWrong) {
  const std::string whole = tiny_gguf("llama", tensors_).bytes();
  size_t refused = 0;
  for (size_t i = 0; i < 2600 && i < whole.size(); i += 3) {  // metadata and directory
    std::string bytes = whole;
    bytes[i] = static_cast<char>(bytes[i] ^ (1 << (i % 8)));
    write_bytes(path_, bytes);
    try {
      const auto checkpoint = open_checkpoint(path_);
      for (const TensorInfo& info : checkpoint->tensors()) checkpoint->load(info.name, info.shape, at::kFloat);
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 0U);
}

// The embedding of the real model is Q8_0 and its layers are Q4_1: rows must be the same rows however they are read.
TEST(RealCheckpoint, GivesTheSameRowsOneByOneAndAllTogether) {
  const char* model = std::getenv("DYNSLICE_TEST_MODEL");
  if (model == nullptr) GTEST_SKIP() << "SKIPPED: DYNSLICE_TEST_MODEL does not name a .gguf file";
  const auto checkpoint = open_checkpoint(model);
  const TensorInfo* info = checkpoint->find("model.layers.0.self_attn.q_proj.weight");
  ASSERT_NE(info, nullptr);
  const at::Tensor whole = checkpoint->load(info->name, info->shape, at::kFloat);
  for (int64_t row = 0; row < info->shape[0]; row += 7) {
    const at::Tensor alone = checkpoint->load_rows(info->name, info->shape, row, row + 1, at::kFloat);
    ASSERT_TRUE(alone.equal(whole.narrow(0, row, 1))) << row;
  }
  EXPECT_EQ(checkpoint->storage_dtype(), at::kBFloat16);
}

}  // namespace
}  // namespace dynslice
