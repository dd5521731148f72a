#include "dynslice/jobs/heal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "aten.h"
#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/formats/safetensors/safetensors_file.h"
#include "dynslice/jobs/depth.h"
#include "dynslice/support/error.h"
#include "dynslice/support/hash.h"
#include "unit/jobs/job_checks.h"
#include "unit/jobs/model_folder.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::content_of;
using testing::expect_dry_run;
using testing::expect_earlier_result;
using testing::expect_error;
using testing::expect_record_in_json;
using testing::expect_same_weights;
using testing::loss_of;
using testing::ModelFolder;
using testing::RestoresThreads;
using ::testing::UnorderedElementsAre;
using testing::write_bytes;

constexpr int64_t kHeldOut = 2;

HealRequest heal_of(const ModelFolder& folder) {
  HealRequest request;
  request.common = folder.common("heal");
  request.text = folder.text();
  request.training.updates = 4;
  request.training.batch = 2;
  request.training.held_out = kHeldOut;
  request.training.validations = 2;
  request.training.learning_rate = 1e-2;
  request.output = folder.in("healed");
  return request;
}

HealResult heal(const HealRequest& request) { return std::get<HealResult>(run(request, no_progress())); }

TokenWindows held_out_windows(const ModelFolder& folder) {
  return folder.windows().part(folder.windows().count - kHeldOut, kHeldOut);
}

double least_validation_loss(const TrainingResult& training) {
  double least = std::numeric_limits<double>::infinity();
  for (const TrainingPoint& point : training.points) least = std::min(least, point.validation_loss);
  return least;
}

// The folder's model without its layer 1, as `depth drop` writes it: the one that is healed by --distill.
std::string shallower_model(const ModelFolder& folder) {
  DropRequest request;
  request.common = folder.common("depth");
  request.indices = {{1, 1}};
  request.output = folder.in("shallower");
  return std::get<DepthResult>(run(request, no_progress())).output.string();
}

HealRequest distill_of(const ModelFolder& folder) {
  HealRequest request = heal_of(folder);
  request.common.model = shallower_model(folder);
  request.distill = folder.in("model");
  return request;
}

// An fp32 matrix of the adapter's file.
at::Tensor factor_of(const SafetensorsFile& file, int64_t layer, const std::string& module, const char* factor) {
  const SafetensorsEntry& entry = file.entries().at("base_model.model.model.layers." + std::to_string(layer) + "." +
                                                    module + ".lora_" + factor + ".weight");
  EXPECT_EQ(entry.dtype, "F32");
  return at::from_blob(const_cast<std::byte*>(file.bytes(entry).data()), entry.shape, at::kFloat).clone();
}

// ---- On the next token

TEST(HealJob, WritesTheModelWhoseLossItMeasuredOnHeldOutText) {
  const ModelFolder folder;
  const HealResult result = heal(heal_of(folder));
  ASSERT_TRUE(result.training.has_value());
  const TokenWindows held_out = held_out_windows(folder);
  EXPECT_NEAR(result.training->points.front().validation_loss, loss_of(*open_checkpoint(folder / "model"), held_out),
              1e-4);
  EXPECT_NEAR(least_validation_loss(*result.training), loss_of(*open_checkpoint(result.output), held_out), 1e-4);
  EXPECT_LT(least_validation_loss(*result.training), result.training->points.front().validation_loss);
  EXPECT_EQ(result.training->updates, 4);
  EXPECT_EQ(result.training->tokens, 4 * 2 * 32);
  EXPECT_TRUE(result.layers.empty());
}

TEST(HealJob, GivesTheRecordThatItWrites) {
  const ModelFolder folder;
  const HealResult result = heal(heal_of(folder));
  EXPECT_EQ(content_of(result.output / "dynslice.json"), to_text(result.record));
  const OrderedJson json = to_json(result);
  expect_record_in_json(result, json);
  EXPECT_EQ(json.at("method"), "heal lora");
  EXPECT_EQ(json.at("lora").at("rank"), 8);
  EXPECT_EQ(json.at("lora").at("merged"), true);
  EXPECT_EQ(to_text(json.at("training")), to_text(to_json(*result.training)));
  const auto written = open_checkpoint(result.output);
  EXPECT_EQ(json.at("parameters").at("before"), json.at("parameters").at("after"));
  EXPECT_EQ(json.at("bytes").at("after"), stored_bytes(*written));
}

TEST(HealJob, HealsToTheSameWeightsFromTheSameSeed) {
  const ModelFolder folder;
  HealRequest request = heal_of(folder);
  const HealResult first = heal(request);
  request.output = folder.in("again");
  expect_same_weights(*open_checkpoint(heal(request).output), *open_checkpoint(first.output));
  request.training.seed = 1;
  request.output = folder.in("otherwise");
  EXPECT_NE(heal(request).training->points.back().validation_loss, first.training->points.back().validation_loss);
}

TEST(HealJob, HealsAlikeWithAnyNumberOfThreads) {
  const RestoresThreads restores;
  const ModelFolder folder;
  HealRequest request = heal_of(folder);
  request.common.force = true;
  std::vector<double> losses;
  for (const int threads : {1, 2}) {
    request.common.threads = threads;
    losses.push_back(least_validation_loss(*heal(request).training));
  }
  EXPECT_NEAR(losses[0], losses[1], 1e-3);  // AdamW's first steps take small gradients for as large as others
}

TEST(HealJob, WritesAsAnAdapterWhatItWouldAddToTheWeights) {
  const ModelFolder folder;
  HealRequest request = heal_of(folder);
  const auto merged = open_checkpoint(heal(request).output), source = open_checkpoint(folder / "model");
  request.adapter = true;
  request.output = folder.in("adapter");
  const HealResult result = heal(request);
  const SafetensorsFile file(result.output / "adapter_model.safetensors");
  EXPECT_EQ(file.entries().size(), 2U * 7 * 3);  // of seven matrices in each of three layers
  for (const std::string module : {"self_attn.k_proj", "mlp.down_proj"}) {
    for (int64_t layer = 0; layer < 3; ++layer) {
      const TensorInfo weight = *source->find(layer_tensor_name(layer, module + ".weight"));
      const at::Tensor update = at::matmul(factor_of(file, layer, module, "B"), factor_of(file, layer, module, "A"));
      const at::Tensor expected = source->load(weight.name, weight.shape, at::kFloat) + 16.0 / 8.0 * update;
      EXPECT_TRUE(at::allclose(merged->load(weight.name, weight.shape, at::kFloat), expected, 1e-5, 1e-6))
          << weight.name;  // products of fp32
    }
  }
  const Json config = Json::parse(content_of(result.output / "adapter_config.json"));
  EXPECT_EQ(config.at("r"), 8);
  EXPECT_EQ(config.at("lora_alpha"), 16);
  EXPECT_EQ(config.at("base_model_name_or_path"), std::filesystem::canonical(folder / "model").string());
  EXPECT_EQ(result.record.at("lora").at("merged"), false);
}

TEST(HealJob, LeavesOtherMatricesThanTheNamedOnesAsTheyAre) {
  const ModelFolder folder;
  HealRequest request = heal_of(folder);
  request.target_modules = "q_proj,up_proj";
  const auto healed = open_checkpoint(heal(request).output), source = open_checkpoint(folder / "model");
  for (const TensorInfo& tensor : source->tensors()) {
    const bool is_named = tensor.name.ends_with("q_proj.weight") || tensor.name.ends_with("up_proj.weight");
    EXPECT_EQ(at::equal(healed->load(tensor.name, tensor.shape, at::kFloat),
                        source->load(tensor.name, tensor.shape, at::kFloat)),
              !is_named)
        << tensor.name;
  }
}

// Six questions with one answer, and a model with positions enough for them.
HealRequest heal_by_instructions(const ModelFolder& folder) {
  Json config = Json::parse(content_of(folder / "model" / "config.json"));
  config["max_position_embeddings"] = 512;
  write_bytes(folder / "model" / "config.json", config.dump());
  Json entries = Json::array();
  for (int i = 0; i < 6; ++i) entries.push_back({{"instruction", "add"}, {"input", ""}, {"output", "sum"}});
  write_bytes(folder / "instructions.json", entries.dump());
  HealRequest request = heal_of(folder);
  request.instructions = folder.in("instructions.json");
  request.text.spec = folder.in("no_such_text.txt");
  request.text.seqlen = 256;
  request.text.samples = 5;
  request.training.held_out = 1;
  return request;
}

TEST(HealJob, LearnsFromInstructions) {
  const ModelFolder folder;
  const HealResult result = heal(heal_by_instructions(folder));
  EXPECT_EQ(result.training->updates, 4);
  EXPECT_LT(least_validation_loss(*result.training), result.training->points.front().validation_loss);
  EXPECT_EQ(result.record.at("instructions").at("sha256"), sha256(content_of(folder / "instructions.json")));
  EXPECT_FALSE(result.record.contains("text"));
}

TEST(HealJob, RefusesInstructionsWhoseQuestionsAloneFillASequence) {
  const ModelFolder folder;
  HealRequest request = heal_by_instructions(folder);
  request.text.seqlen = 64;
  expect_error(ErrorKind::kUsage, {"instructions.json", "nothing is left to train on"}, [&] { heal(request); });
}

TEST(HealJob, WritesNothingInADryRun) {
  const ModelFolder folder;
  expect_dry_run(folder, heal_of(folder), "heal");
  expect_dry_run(folder, distill_of(folder), "heal");
}

TEST(HealJob, FindsWithResumeThatAnEarlierRunHadFinished) {
  const ModelFolder folder;
  const HealRequest request = heal_of(folder);
  expect_earlier_result(heal(request), request);
}

TEST(HealJob, LeavesNothingBesideItsFolder) {
  const ModelFolder folder;
  heal(heal_of(folder));
  EXPECT_THAT(folder.names(), UnorderedElementsAre("model", "text.txt", "healed"));
}

// ---- Layer by layer

TEST(HealByDistillation, SaysHowFarTheStreamsOfTheWrittenModelAreFromTheOriginals) {
  const ModelFolder folder;
  const HealResult result = heal(distill_of(folder));
  EXPECT_FALSE(result.training.has_value());
  ASSERT_EQ(result.layers.size(), 2U);
  const auto original = open_checkpoint(folder / "model"), healed = open_checkpoint(result.output);
  const TokenWindows held_out = held_out_windows(folder);
  const auto streams_of = [&](const Checkpoint& model) {
    return testing::all_streams(LayerWalk(model, {}, held_out.length, no_progress()), held_out);
  };
  const std::vector<at::Tensor> wanted = streams_of(*original), found = streams_of(*healed);
  // Layer 0 stands for layers 0 and 1; layer 1 is the original's layer 2.
  for (const auto& [layer, boundary] : {std::pair<size_t, size_t>{0, 2}, {1, 3}}) {
    const at::Tensor target = wanted[boundary];
    const at::Tensor errors = (found[layer + 1] - target).square().sum(1) / target.square().sum(1);
    EXPECT_NEAR(result.layers[layer].after, errors.mean().item<double>(), 1e-4) << layer;
    EXPECT_LE(result.layers[layer].after, result.layers[layer].before);
  }
  EXPECT_EQ(result.distilled_tokens, 2 * 4 * 2 * 32);
}

TEST(HealByDistillation, RecordsTheFiguresOfEveryLayer) {
  const ModelFolder folder;
  const HealResult result = heal(distill_of(folder));
  const OrderedJson json = to_json(result);
  expect_record_in_json(result, json);
  EXPECT_EQ(json.at("method"), "heal distill");
  EXPECT_EQ(json.at("original"), folder.in("model"));
  EXPECT_EQ(json.at("training").at("tokens"), result.distilled_tokens);
  ASSERT_EQ(json.at("training").at("layers").size(), result.layers.size());
  for (size_t layer = 0; layer < result.layers.size(); ++layer) {
    EXPECT_EQ(json.at("training").at("layers").at(layer).at("before"), result.layers[layer].before);
    EXPECT_EQ(json.at("training").at("layers").at(layer).at("after"), result.layers[layer].after);
  }
}

TEST(HealByDistillation, RefusesAnOriginalInWhichTheLayersHaveNoPlace) {
  const ModelFolder folder;
  const ModelFolder deeper(7, 4);
  HealRequest request = heal_of(folder);
  request.distill = deeper.in("model");
  expect_error(ErrorKind::kUsage, {"has 4 layers", "the first has 3", "cannot be placed"}, [&] { heal(request); });
}

TEST(HealByDistillation, RefusesToReplaceTheOriginal) {
  const ModelFolder folder;
  HealRequest request = distill_of(folder);
  request.output = folder.in("model");
  request.common.force = true;
  expect_error(ErrorKind::kUsage, {"holds the model that is read"}, [&] { heal(request); });
}

// ---- Refusals

TEST(HealJob, RefusesTwoWaysAtOnce) {
  const ModelFolder folder;
  HealRequest request = distill_of(folder);
  request.lora = true;
  expect_error(ErrorKind::kUsage, {"--lora", "--distill"}, [&] { heal(request); });
}

TEST(HealJob, RefusesPrecisionThatIsTooLow) {
  const ModelFolder folder;
  HealRequest request = heal_of(folder);
  request.common.dtype = "fp16";
  expect_error(ErrorKind::kUsage, {"--dtype fp16", "bf16"}, [&] { heal(request); });
}

TEST(HealJob, RefusesTextOfWhichNothingIsLeftToTrainOn) {
  const ModelFolder folder;
  HealRequest request = heal_of(folder);
  request.training.held_out = 8;
  expect_error(ErrorKind::kUsage, {"8 sequences", "nothing is left to train on", "--held-out"}, [&] { heal(request); });
}

TEST(HealJob, NamesTheModulesThatThereAre) {
  const ModelFolder folder;
  HealRequest request = heal_of(folder);
  request.target_modules = "q_proj,x_proj";
  expect_error(ErrorKind::kUsage, {"--target-modules", "x_proj", "k_proj", "down_proj"}, [&] { heal(request); });
}

TEST(HealJob, RefusesAFolderThatIsThere) {
  const ModelFolder folder;
  const HealRequest request = heal_of(folder);
  heal(request);
  expect_error(ErrorKind::kUsage, {"healed: exists", "--force"}, [&] { heal(request); });
}

}  // namespace
}  // namespace dynslice
