#include "dynslice/jobs/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "aten.h"
#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/formats/gguf/gguf_file.h"
#include "dynslice/jobs/score.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/quantize/quantize.h"
#include "dynslice/support/error.h"
#include "unit/jobs/job_checks.h"
#include "unit/jobs/model_folder.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::content_of;
using ::testing::Each;
using ::testing::ElementsAre;
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

QuantizeRequest quantize_of(const ModelFolder& folder) {
  QuantizeRequest request;
  request.common = folder.common("quantize");
  request.calibration = folder.text();
  request.output = folder.in("quantized");
  return request;
}

QuantizeRequest gguf_of(const ModelFolder& folder) {
  QuantizeRequest request = quantize_of(folder);
  request.gguf = true;
  request.output = folder.in("quantized.gguf");
  return request;
}

QuantizedModel quantize(const QuantizeRequest& request) {
  return std::get<QuantizedModel>(std::get<QuantizeResult>(run(request, no_progress())));
}

void expect_printed_record(const QuantizedModel& model) {
  expect_record_in_json(model, to_json(QuantizeResult(model)));
}

at::Tensor weight_of(const Checkpoint& model, const std::string& name) {
  return model.load(name, model.find(name)->shape, at::kFloat);
}

// The layers of the folder's model, the least important by lim first.
std::vector<int64_t> order_by_lim(const ModelFolder& folder) {
  ScoreRequest request;
  request.common = folder.common("score");
  request.calibration = folder.text();
  request.metric = "lim";
  return by_importance(std::get<ScoreResult>(run(request, no_progress())).scores);
}

// ---- A checkpoint

struct QuantizeWay {
  const char* name;
  QuantizeMethod method;
  int bits;
  bool symmetric;
};

class EveryWayToQuantize : public ::testing::TestWithParam<QuantizeWay> {};

TEST_P(EveryWayToQuantize, SaysTheSizesThatTheWrittenCheckpointHas) {
  const ModelFolder folder;
  QuantizeRequest request = quantize_of(folder);
  request.method = GetParam().method;
  request.bits = {GetParam().bits};
  request.symmetric = GetParam().symmetric;
  const QuantizedModel model = quantize(request);
  const auto source = open_checkpoint(folder / "model");
  EXPECT_EQ(model.bytes_after, testing::bytes_of_tensors(model.output / "model.safetensors"));
  EXPECT_EQ(model.source.bytes_before, stored_bytes(*source));
  EXPECT_EQ(model.source.before.parameters, count_cost(source->config()).parameters);
  EXPECT_THAT(model.plan.bits, ElementsAre(GetParam().bits, GetParam().bits, GetParam().bits));
  ASSERT_EQ(model.levels.size(), 1U);
  EXPECT_EQ(model.levels[0].bits, GetParam().bits);
  EXPECT_THAT(model.levels[0].layers, ElementsAre(0, 1, 2));
  EXPECT_EQ(model.average_bits.codes, GetParam().bits);
  EXPECT_GT(model.average_bits.with_scales, model.average_bits.codes);
  EXPECT_GT(model.average_bits.of_all, model.average_bits.with_scales);  // what stays has 32
  EXPECT_EQ(content_of(model.output / "dynslice.json"), to_text(model.record));
  expect_printed_record(model);
}

INSTANTIATE_TEST_SUITE_P(QuantizeJob, EveryWayToQuantize,
                         ::testing::Values(QuantizeWay{"Rounding", QuantizeMethod::kRtn, 4, false},
                                           QuantizeWay{"RoundingSymmetric", QuantizeMethod::kRtn, 4, true},
                                           QuantizeWay{"RoundingTo8", QuantizeMethod::kRtn, 8, false},
                                           QuantizeWay{"RoundingTo3", QuantizeMethod::kRtn, 3, false},
                                           QuantizeWay{"Gptq", QuantizeMethod::kGptq, 4, false},
                                           QuantizeWay{"GptqTo2", QuantizeMethod::kGptq, 2, true}),
                         [](const auto& instance) { return std::string(instance.param.name); });

TEST(QuantizeJob, RoundsEveryWeightToTheNearestOfFewValuesOfItsGroup) {
  const ModelFolder folder;
  QuantizeRequest request = quantize_of(folder);
  request.method = QuantizeMethod::kRtn;
  request.bits = {3};
  const auto source = open_checkpoint(folder / "model"), quantized = open_checkpoint(quantize(request).output);
  for (int64_t layer = 0; layer < 3; ++layer) {
    for (const LinearShape& matrix : linear_shapes(source->config(), layer)) {
      const std::string name = layer_tensor_name(layer, matrix.module + ".weight");
      const at::Tensor weights = weight_of(*source, name).reshape({-1, 32});  // 32 divides every width
      const at::Tensor values = weight_of(*quantized, name).reshape({-1, 32});
      const at::Tensor low = weights.amin(1).clamp_max(0), high = weights.amax(1).clamp_min(0);
      const at::Tensor half_a_step = (high - low) / 7 / 2;  // 3 bits: seven steps
      // A zero point is a whole number of steps, which may move the grid's ends by another half step.
      EXPECT_TRUE(((values - weights).abs() <= 2.001 * half_a_step.unsqueeze(1)).all().item<bool>()) << name;
      for (int64_t group = 0; group < values.size(0); group += 16)
        EXPECT_LT(std::get<0>(values[group].sort()).diff().count_nonzero().item<int64_t>(), 8) << name;
    }
  }
  EXPECT_TRUE(at::equal(weight_of(*quantized, "lm_head.weight"), weight_of(*source, "lm_head.weight")));
}

TEST(QuantizeJob, WritesTheSameValuesPackedAndInFull) {
  const ModelFolder folder;
  QuantizeRequest request = quantize_of(folder);
  const QuantizedModel packed = quantize(request);
  request.fake_quant = true;
  request.output = folder.in("values");
  const QuantizedModel full = quantize(request);
  EXPECT_EQ(packed.record.at("format"), "pack-quantized");
  EXPECT_EQ(full.record.at("format"), "values");
  EXPECT_EQ(full.bytes_after, stored_bytes(*open_checkpoint(full.output)));
  expect_same_weights(*open_checkpoint(packed.output), *open_checkpoint(full.output));
}

TEST(QuantizeJob, LosesLessByGptqThanByRounding) {
  const ModelFolder folder;
  QuantizeRequest request = quantize_of(folder);
  request.bits = {2};
  const auto error_of = [&](QuantizeMethod method) {
    request.method = method;
    request.output = folder.in(name_of(method));
    const auto model = open_checkpoint(quantize(request).output), source = open_checkpoint(folder / "model");
    const auto last = [&](const Checkpoint& of) {
      return testing::all_streams(LayerWalk(of, {}, folder.windows().length, no_progress()), folder.windows()).back();
    };
    return (last(*model) - last(*source)).square().sum().item<double>();
  };
  EXPECT_LT(error_of(QuantizeMethod::kGptq), error_of(QuantizeMethod::kRtn));
}

TEST(QuantizeJob, GivesTheLeastImportantLayersTheFewestBits) {
  const ModelFolder folder;
  QuantizeRequest request = quantize_of(folder);
  request.method = QuantizeMethod::kRtn;
  request.bits = {8, 4, 2};
  const QuantizedModel model = quantize(request);
  const std::vector<int64_t> order = order_by_lim(folder);
  EXPECT_EQ(model.plan.bits[static_cast<size_t>(order[0])], 2);
  EXPECT_EQ(model.plan.bits[static_cast<size_t>(order[1])], 4);
  EXPECT_EQ(model.plan.bits[static_cast<size_t>(order[2])], 8);
  EXPECT_EQ(model.plan.order, "lim");
  EXPECT_NEAR(model.average_bits.codes, 14.0 / 3, 1e-12);  // the layers are alike
  ASSERT_EQ(model.levels.size(), 3U);
  EXPECT_EQ(model.levels[0].bits, 8);
  EXPECT_EQ(model.levels[2].bits, 2);
  EXPECT_THAT(model.levels[2].layers, ElementsAre(order[0]));
  EXPECT_EQ(model.record.at("average_bits").at("codes"), model.average_bits.codes);
}

TEST(QuantizeJob, StaysBelowTheAverageThatIsAskedFor) {
  const ModelFolder folder;
  QuantizeRequest request = quantize_of(folder);
  request.method = QuantizeMethod::kRtn;
  request.bits = {8, 4};
  request.average_bits = 7;
  for (const std::string order : {"zd", "random", "reverse", "search"}) {
    request.order = order;
    request.search_samples = 2;
    request.calibration.samples = 6;
    request.output = folder.in(order);
    const QuantizedModel model = quantize(request);
    EXPECT_EQ(std::count(model.plan.bits.begin(), model.plan.bits.end(), 4), 1) << order;  // (8 + 8 + 4) / 3
    EXPECT_LE(model.average_bits.codes, 7) << order;
    EXPECT_EQ(model.plan.order, order);
  }
}

TEST(QuantizeJob, LowersBySearchTheLayerThatCostsTheLeastLoss) {
  const ModelFolder folder;
  QuantizeRequest request = quantize_of(folder);
  request.method = QuantizeMethod::kRtn;
  request.bits = {8, 2};
  request.order = "search";
  request.average_bits = 6;
  request.search_samples = 2;
  request.calibration.samples = 6;
  const std::vector<int> searched = quantize(request).plan.bits;
  const TokenWindows held_out = folder.windows().part(6, 2);
  const auto loss_with = [&](const std::vector<int>& bits) {
    QuantPlan plan;
    plan.bits = bits;
    write_bytes(folder / "plan.json", to_text(to_json(plan)));
    QuantizeRequest planned = quantize_of(folder);
    planned.method = QuantizeMethod::kRtn;
    planned.plan = folder.in("plan.json");
    planned.common.force = true;
    return loss_of(*open_checkpoint(quantize(planned).output), held_out);
  };
  const std::vector<std::vector<int>> all = {{2, 8, 8}, {8, 2, 8}, {8, 8, 2}};
  std::vector<double> losses;
  for (const std::vector<int>& bits : all) losses.push_back(loss_with(bits));
  EXPECT_EQ(searched, all[static_cast<size_t>(std::min_element(losses.begin(), losses.end()) - losses.begin())]);
}

TEST(QuantizeJob, QuantizesAsAPlanSays) {
  const ModelFolder folder;
  QuantPlan plan;
  plan.bits = {8, 3, 5};
  write_bytes(folder / "plan.json", to_text(to_json(plan)));
  QuantizeRequest request = quantize_of(folder);
  request.plan = folder.in("plan.json");
  const QuantizedModel model = quantize(request);
  EXPECT_EQ(model.plan.bits, plan.bits);
  EXPECT_EQ(model.record.at("plan").at("bits").get<std::vector<int>>(), plan.bits);
  EXPECT_NEAR(model.average_bits.codes, 16.0 / 3, 1e-12);
}

TEST(QuantizeJob, NeedsNoTextToRoundAllLayersAlike) {
  const ModelFolder folder;
  QuantizeRequest request = quantize_of(folder);
  request.method = QuantizeMethod::kRtn;
  request.calibration.spec = folder.in("no_such_text.txt");
  EXPECT_FALSE(quantize(request).record.contains("calibration"));
}

TEST(QuantizeJob, LosesTheSameWithAnyNumberOfThreads) {
  const RestoresThreads restores;
  const ModelFolder folder;
  QuantizeRequest request = quantize_of(folder);
  request.common.force = true;
  std::vector<double> losses;
  for (const int threads : {1, 2}) {
    request.common.threads = threads;
    losses.push_back(loss_of(*open_checkpoint(quantize(request).output), folder.windows()));
  }
  EXPECT_NEAR(losses[0], losses[1], 1e-3);  // a sum in another order may move a weight to the next value of its grid
}

TEST(QuantizeJob, WritesNothingInADryRun) {
  const ModelFolder folder;
  expect_dry_run(folder, quantize_of(folder), "quantize");
  expect_dry_run(folder, gguf_of(folder), "quantize");
}

TEST(QuantizeJob, FindsWithResumeThatAnEarlierRunHadFinished) {
  const ModelFolder folder;
  expect_earlier_result(quantize(quantize_of(folder)), quantize_of(folder));
}

TEST(QuantizeJob, RefusesAFolderThatIsThere) {
  const ModelFolder folder;
  quantize(quantize_of(folder));
  expect_error(ErrorKind::kUsage, {"quantized: exists", "--force"}, [&] { quantize(quantize_of(folder)); });
}

TEST(QuantizeJob, RefusesSharesAndAveragesThatDoNotGoWithTheLevels) {
  const ModelFolder folder;
  QuantizeRequest request = quantize_of(folder);
  request.average_bits = 5;
  expect_error(ErrorKind::kUsage, {"--avg-bits", "two levels"}, [&] { quantize(request); });
  request.bits = {4, 3};
  expect_error(ErrorKind::kUsage, {"--avg-bits 5", "between 3 and 4"}, [&] { quantize(request); });
  request.average_bits.reset();
  request.low_shares = {0.5, 0.25};
  expect_error(ErrorKind::kUsage, {"--low-share", "1 here; found 2"}, [&] { quantize(request); });
  request.low_shares = {1.5};
  expect_error(ErrorKind::kUsage, {"--low-share", "more than 100%"}, [&] { quantize(request); });
}

TEST(QuantizeJob, RefusesOptionsOfAnotherMethodOrFormat) {
  const ModelFolder folder;
  QuantizeRequest request = quantize_of(folder);
  request.types = {"q4_0"};
  expect_error(ErrorKind::kUsage, {"--types", "--gguf"}, [&] { quantize(request); });
  request = quantize_of(folder);
  request.method = QuantizeMethod::kRtn;
  request.common.given = {{"--damping", "0.1"}};
  expect_error(ErrorKind::kUsage, {"--damping", "gptq", "rtn"}, [&] { quantize(request); });
}

TEST(QuantizeJob, RefusesGroupsThatDoNotDivideTheRows) {
  const ModelFolder folder;
  QuantizeRequest request = quantize_of(folder);
  request.group_size = GroupSize::k64;
  expect_error(ErrorKind::kUsage, {"64", "32"}, [&] { quantize(request); });
}

TEST(QuantizeJob, RefusesAnOrderThatIsNeitherKnownNorAFile) {
  const ModelFolder folder;
  QuantizeRequest request = quantize_of(folder);
  request.bits = {8, 4};
  request.order = "alphabetical";
  expect_error(ErrorKind::kUsage, {"--order alphabetical", "lim", "search"}, [&] { quantize(request); });
}

TEST(QuantizeJob, RefusesAPlanOfAnotherModel) {
  const ModelFolder folder;
  QuantPlan plan;
  plan.bits = {8, 4};
  write_bytes(folder / "plan.json", to_text(to_json(plan)));
  QuantizeRequest request = quantize_of(folder);
  request.plan = folder.in("plan.json");
  expect_error(ErrorKind::kBadInput, {"plan.json", "2 layers", "3"}, [&] { quantize(request); });
}

// ---- A GGUF file

TEST(QuantizeToGguf, SaysWhatTheWrittenFileHolds) {
  const ModelFolder folder;
  QuantizeRequest request = gguf_of(folder);
  request.bits = {8, 4};
  request.types = {"q8_0", "q4_0"};
  request.order = "zd";
  const QuantizedModel model = quantize(request);
  EXPECT_EQ(model.output, folder / "quantized.gguf");
  EXPECT_THAT(folder.names(), UnorderedElementsAre("model", "text.txt", "quantized.gguf"));
  const auto written = open_checkpoint(model.output);
  EXPECT_EQ(model.bytes_after, stored_bytes(*written));
  const double parameters = static_cast<double>(count_cost(written->config()).parameters);
  EXPECT_DOUBLE_EQ(model.average_bits.of_all, 8.0 * static_cast<double>(model.bytes_after) / parameters);
  for (int64_t layer = 0; layer < 3; ++layer) {
    const std::string expected = model.plan.bits[static_cast<size_t>(layer)] == 8 ? "Q8_0" : "Q4_0";
    EXPECT_EQ(written->find(layer_tensor_name(layer, "mlp.down_proj.weight"))->dtype, expected);
  }
  ASSERT_EQ(model.levels.size(), 2U);
  EXPECT_THAT(model.levels[0].formats, ElementsAre("Q8_0"));
  EXPECT_THAT(model.levels[1].formats, ElementsAre("Q4_0"));
}

TEST(QuantizeToGguf, KeepsItsRecordInTheFile) {
  const ModelFolder folder;
  const QuantizedModel model = quantize(gguf_of(folder));
  EXPECT_EQ(GgufFile(model.output).string("dynslice.record"), to_text(model.record));
  EXPECT_EQ(model.record.at("format"), "gguf");
  expect_printed_record(model);
}

TEST(QuantizeToGguf, StoresEmbeddingAndHeadAsAsked) {
  const ModelFolder folder;
  QuantizeRequest request = gguf_of(folder);
  request.embeddings = "q8_0";
  const auto written = open_checkpoint(quantize(request).output);
  EXPECT_EQ(written->find("model.embed_tokens.weight")->dtype, "Q8_0");
  EXPECT_EQ(written->find("lm_head.weight")->dtype, "Q8_0");
}

TEST(QuantizeToGguf, FindsWithResumeThatAnEarlierRunHadFinished) {
  const ModelFolder folder;
  expect_earlier_result(quantize(gguf_of(folder)), gguf_of(folder));
}

TEST(QuantizeToGguf, RefusesAFileThatIsThere) {
  const ModelFolder folder;
  quantize(gguf_of(folder));
  expect_error(ErrorKind::kUsage, {"quantized.gguf", "--force"}, [&] { quantize(gguf_of(folder)); });
}

TEST(QuantizeToGguf, RefusesLevelsAndTypesThatDoNotGoTogether) {
  const ModelFolder folder;
  QuantizeRequest request = gguf_of(folder);
  request.bits = {7};
  expect_error(ErrorKind::kUsage, {"7 bits", "8, 6, 5, 4, 3 and 2"}, [&] { quantize(request); });
  request.bits = {8, 4};
  request.types = {"q8_0"};
  expect_error(ErrorKind::kUsage, {"--types", "2 here; found 1"}, [&] { quantize(request); });
  request.types = {"q8_0", "q9_9"};
  expect_error(ErrorKind::kUsage, {"--types", "q9_9", "q4_k"}, [&] { quantize(request); });
}

// ---- A sweep

QuantizeRequest sweep_of(const ModelFolder& folder) {
  QuantizeRequest request = quantize_of(folder);
  request.common.verb = "quantize";
  request.method = QuantizeMethod::kRtn;
  request.bits = {8, 2};
  request.sweep = folder.in("sweep.json");
  request.measured = folder.text();
  request.output.clear();
  return request;
}

QuantSweep sweep(const QuantizeRequest& request) {
  return std::get<QuantSweep>(std::get<QuantizeResult>(run(request, no_progress())));
}

TEST(QuantizeSweep, HasThePerplexitiesOfTheModelsThatQuantizeWrites) {
  const ModelFolder folder;
  const QuantSweep result = sweep(sweep_of(folder));
  const auto perplexity_of = [&](const std::vector<int>& bits, const std::vector<double>& low_shares) {
    QuantizeRequest request = quantize_of(folder);
    request.method = QuantizeMethod::kRtn;
    request.bits = bits;
    request.low_shares = low_shares;
    request.common.force = true;
    return std::exp(loss_of(*open_checkpoint(quantize(request).output), folder.windows()));
  };
  const double high = perplexity_of({8}, {}), low = perplexity_of({2}, {});
  EXPECT_EQ(result.levels, (std::vector<int>{8, 2}));
  ASSERT_EQ(result.curves.size(), 6U);
  for (const SweepCurve& curve : result.curves) {
    ASSERT_EQ(curve.shares.size(), 11U) << curve.name;
    EXPECT_TRUE(std::is_sorted(curve.shares.begin(), curve.shares.end())) << curve.name;
    EXPECT_EQ(curve.shares.front(), 0) << curve.name;
    EXPECT_EQ(curve.shares.back(), 1) << curve.name;
    EXPECT_NEAR(curve.perplexities.front(), high, 1e-3 * high) << curve.name;
    EXPECT_NEAR(curve.perplexities.back(), low, 1e-3 * low) << curve.name;
  }
  EXPECT_EQ(result.curves.front().order, "lim");
  const double third = perplexity_of({8, 2}, {1.0 / 3});  // as the points at 20 and 30 % of three layers are
  EXPECT_NEAR(result.curves.front().perplexities[3], third, 1e-3 * third);
}

TEST(QuantizeSweep, WritesTheCurvesThatItGivesAndAPicture) {
  const ModelFolder folder;
  const QuantSweep result = sweep(sweep_of(folder));
  EXPECT_EQ(result.output, folder / "sweep.json");
  EXPECT_EQ(result.picture, folder / "sweep.svg");
  EXPECT_EQ(content_of(result.output), to_text(result.record));
  EXPECT_THAT(content_of(result.picture), ::testing::StartsWith("<svg"));
  EXPECT_THAT(folder.names(), UnorderedElementsAre("model", "text.txt", "sweep.json", "sweep.svg"));
  const OrderedJson json = to_json(QuantizeResult(result));
  expect_record_in_json(result, json, /*has_output=*/false);
  ASSERT_EQ(json.at("curves").size(), result.curves.size());
  for (size_t i = 0; i < result.curves.size(); ++i) {
    const OrderedJson& curve = json.at("curves").at(i);
    EXPECT_EQ(curve.at("order"), result.curves[i].order);
    EXPECT_EQ(curve.at("low_share").get<std::vector<double>>(), result.curves[i].shares);
    EXPECT_EQ(curve.at("perplexity").get<std::vector<double>>(), result.curves[i].perplexities);
    EXPECT_EQ(curve.at("low_share_within_5_percent"), result.curves[i].share_within_tolerance());
  }
}

TEST(QuantizeSweep, AsksEveryModelTheQuestionsOfTasks) {
  const ModelFolder folder;
  testing::write_piqa(folder / "data");
  QuantizeRequest request = sweep_of(folder);
  request.common.data_dir = folder.in("data");
  request.tasks = "piqa";
  const QuantSweep result = sweep(request);
  EXPECT_THAT(result.tasks, ElementsAre("piqa"));
  for (const SweepCurve& curve : result.curves) {
    ASSERT_EQ(curve.accuracies.size(), curve.shares.size());
    // All curves end with the same two models.
    EXPECT_EQ(curve.accuracies.front(), result.curves.front().accuracies.front());
    EXPECT_EQ(curve.accuracies.back(), result.curves.front().accuracies.back());
    for (const std::vector<double>& accuracy : curve.accuracies) {
      EXPECT_THAT(accuracy, Each(::testing::AllOf(::testing::Ge(0), ::testing::Le(1))));
    }
  }
  EXPECT_TRUE(std::filesystem::exists(folder / "sweep.piqa.svg"));
  EXPECT_EQ(result.record.at("curves").at(0).at("accuracy").at("piqa").size(), 11U);
}

TEST(QuantizeSweep, EndsItsToleranceAtTheFirstPointAboveIt) {
  const SweepCurve curve{.name = "lim",
                         .order = "lim",
                         .seed = 0,
                         .shares = {0, 0.25, 0.5, 0.75},
                         .perplexities = {10, 10.4, 10.6, 10.1}};  // 5 % above 10 are 10.5
  EXPECT_EQ(curve.share_within_tolerance(), 0.25);
}

TEST(QuantizeSweep, WritesNothingInADryRun) {
  const ModelFolder folder;
  expect_dry_run(folder, sweep_of(folder), "quantize --sweep");
}

TEST(QuantizeSweep, RefusesAnyButTwoLevelsAndAFileThatIsThePicture) {
  const ModelFolder folder;
  QuantizeRequest request = sweep_of(folder);
  request.bits = {8, 4, 2};
  expect_error(ErrorKind::kUsage, {"--sweep", "two levels", "found 3"}, [&] { sweep(request); });
  request.bits = {8, 4};
  request.sweep = folder.in("sweep.svg");
  expect_error(ErrorKind::kUsage, {"sweep.svg", "JSON"}, [&] { sweep(request); });
  request.sweep = folder.in("no_such_folder/sweep.json");
  expect_error(ErrorKind::kMissingData, {"its folder does not exist"}, [&] { sweep(request); });
}

}  // namespace
}  // namespace dynslice
