#include "dynslice/jobs/depth.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "aten.h"
#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/jobs/slice.h"
#include "dynslice/support/error.h"
#include "unit/jobs/job_checks.h"
#include "unit/jobs/model_folder.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::content_of;
using ::testing::DoubleNear;
using ::testing::ElementsAre;
using testing::expect_dry_run;
using testing::expect_earlier_result;
using testing::expect_error;
using testing::expect_record_in_json;
using testing::expect_same_weights;
using testing::expect_sizes_on_disk;
using testing::loss_of;
using testing::ModelFolder;
using ::testing::Pointwise;
using testing::RestoresThreads;

using Layers = std::vector<std::vector<int64_t>>;

constexpr int64_t kLayers = 5;

// A model of five layers.
class DepthFolder : public ModelFolder {
 public:
  DepthFolder() : ModelFolder(7, kLayers) {}

  template <typename Request>
  Request request(const std::string& output) const {
    Request request;
    request.common = common("depth");
    request.calibration = text();
    request.output = in(output);
    return request;
  }
  DropRequest drop() const { return request<DropRequest>("dropped"); }
  MergeRequest merge() const { return request<MergeRequest>("merged"); }
  StreamlineRequest streamline(ReplacementKind replace) const {
    auto streamlined = request<StreamlineRequest>("streamlined");
    streamlined.layers = 2;
    streamlined.replace = replace;
    streamlined.training.updates = 4;
    streamlined.training.batch = 2;
    streamlined.training.held_out = 2;
    streamlined.training.validations = 2;
    streamlined.training.learning_rate = 1e-2;
    return streamlined;
  }
  std::unique_ptr<Checkpoint> source() const { return open_checkpoint(*this / "model"); }

  // The residual streams of a model on the text, x_0 to x_L.
  std::vector<at::Tensor> streams_of(const Checkpoint& model) const {
    return testing::all_streams(LayerWalk(model, {}, windows().length, no_progress()), windows());
  }
};

template <typename Request>
DepthResult make_shallower(const Request& request) {
  return std::get<DepthResult>(run(request, no_progress()));
}

// The loss of the model that has no layers [first, first + count).
double loss_without(const DepthFolder& folder, int64_t first, int64_t count, const TokenWindows& windows) {
  DropRequest request = folder.drop();
  request.indices = {{first, first + count - 1}};
  request.common.force = true;
  return loss_of(*open_checkpoint(make_shallower(request).output), windows);
}

double mean_cosine(const at::Tensor& a, const at::Tensor& b) {
  return at::cosine_similarity(a, b).mean().item<double>();
}

// ---- All methods

struct DepthWay {
  const char* name;
  std::function<DepthResult(const DepthFolder&)> run;
  int64_t layers_after;
};

DepthResult streamline_by(const DepthFolder& folder, ReplacementKind replace) {
  return make_shallower(folder.streamline(replace));
}

std::vector<DepthWay> depth_ways() {
  return {
      {"DropByInfluence",
       [](const DepthFolder& folder) {
         DropRequest request = folder.drop();
         request.layers = 2;
         return make_shallower(request);
       },
       3},
      {"DropByPerplexity",
       [](const DepthFolder& folder) {
         DropRequest request = folder.drop();
         request.ratio = 0.4;
         request.order = DropOrder::kPerplexity;
         return make_shallower(request);
       },
       3},
      {"Merge",
       [](const DepthFolder& folder) {
         MergeRequest request = folder.merge();
         request.target_layers = 3;
         return make_shallower(request);
       },
       3},
      {"StreamlineNone", [](const DepthFolder& folder) { return streamline_by(folder, ReplacementKind::kNone); }, 3},
      {"StreamlineLinear", [](const DepthFolder& folder) { return streamline_by(folder, ReplacementKind::kLinear); },
       3},
      {"StreamlineStream",
       [](const DepthFolder& folder) { return streamline_by(folder, ReplacementKind::kLinearStream); }, 3},
      {"StreamlineLayer", [](const DepthFolder& folder) { return streamline_by(folder, ReplacementKind::kLayer); }, 3},
      {"StreamlineFfn", [](const DepthFolder& folder) { return streamline_by(folder, ReplacementKind::kFfn); }, 3},
      {"StreamlineSwiglu", [](const DepthFolder& folder) { return streamline_by(folder, ReplacementKind::kSwiglu); },
       3}};
}

class EveryWayToLessDepth : public ::testing::TestWithParam<DepthWay> {};

TEST_P(EveryWayToLessDepth, SaysWhatTheWrittenCheckpointHas) {
  const DepthFolder folder;
  const DepthResult result = GetParam().run(folder);
  expect_sizes_on_disk(result.sizes, folder / "model", result.output);
  EXPECT_EQ(result.layers_before, kLayers);
  EXPECT_EQ(static_cast<int64_t>(result.plan.layers.size()), GetParam().layers_after);
  EXPECT_EQ(open_checkpoint(result.output)->config().num_layers(), GetParam().layers_after);
  EXPECT_EQ(content_of(result.output / "dynslice.json"), to_text(result.record));
  const OrderedJson json = to_json(result);
  EXPECT_EQ(json.at("plan").at("layers").get<Layers>(), result.plan.layers);
  EXPECT_EQ(json.at("layers").at("before"), kLayers);
  EXPECT_EQ(json.at("layers").at("after"), GetParam().layers_after);
  EXPECT_EQ(json.at("parameters").at("after"), result.sizes.after.parameters);
  EXPECT_EQ(json.at("bytes").at("after"), result.sizes.bytes_after);
  expect_record_in_json(result, json);
}

INSTANTIATE_TEST_SUITE_P(DepthJob, EveryWayToLessDepth, ::testing::ValuesIn(depth_ways()),
                         [](const auto& instance) { return std::string(instance.param.name); });

// ---- Drop

TEST(DropJob, KeepsTheOtherLayersAsTheyAreAndReadsNoText) {
  const DepthFolder folder;
  DropRequest request = folder.drop();
  request.indices = {{1, 1}, {3, 4}};
  request.calibration.spec = folder.in("no_such_text.txt");
  const DepthResult result = make_shallower(request);
  EXPECT_EQ(result.plan.layers, (Layers{{0}, {2}}));
  EXPECT_EQ(std::get<DropSearch>(result.search).dropped, (std::vector<int64_t>{1, 3, 4}));
  EXPECT_FALSE(result.record.contains("calibration"));
  const auto source = folder.source(), written = open_checkpoint(result.output);
  for (const TensorInfo& tensor : written->tensors()) {
    std::string name = tensor.name;
    if (name.starts_with("model.layers.1.")) name.replace(0, 15, "model.layers.2.");
    EXPECT_TRUE(
        at::equal(written->load(tensor.name, tensor.shape, at::kFloat), source->load(name, tensor.shape, at::kFloat)))
        << tensor.name;
  }
}

TEST(DropJob, DropsTheLayersThatChangeTheStreamLeast) {
  const DepthFolder folder;
  DropRequest request = folder.drop();
  request.layers = 2;
  const DepthResult result = make_shallower(request);
  const std::vector<at::Tensor> streams = folder.streams_of(*folder.source());
  std::vector<std::pair<double, int64_t>> influence;
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const auto index = static_cast<size_t>(layer);
    influence.emplace_back(1 - mean_cosine(streams[index], streams[index + 1]), layer);
  }
  std::sort(influence.begin(), influence.end());
  std::vector<int64_t> least{influence[0].second, influence[1].second};
  std::sort(least.begin(), least.end());
  const auto& search = std::get<DropSearch>(result.search);
  EXPECT_EQ(search.dropped, least);
  ASSERT_TRUE(search.scores.has_value());
  EXPECT_EQ(search.scores->metric, "bi");
  EXPECT_EQ(result.record.at("removed").get<std::vector<int64_t>>(), least);
}

TEST(DropJob, DropsByPerplexityTheLayerWithoutWhichTheLossIsLeast) {
  const DepthFolder folder;
  DropRequest request = folder.drop();
  request.layers = 1;
  request.order = DropOrder::kPerplexity;
  const DepthResult result = make_shallower(request);
  double least = std::numeric_limits<double>::infinity();
  for (int64_t layer = 0; layer < kLayers; ++layer)
    least = std::min(least, loss_without(folder, layer, 1, folder.windows()));
  const auto& search = std::get<DropSearch>(result.search);
  ASSERT_EQ(search.trials.size(), 1U);
  EXPECT_NEAR(search.trials[0].loss, least, 1e-4);
  EXPECT_NEAR(loss_without(folder, search.trials[0].layer, 1, folder.windows()), least, 1e-4);
  EXPECT_EQ(search.dropped, (std::vector<int64_t>{search.trials[0].layer}));
  EXPECT_DOUBLE_EQ(result.record.at("trials").at(0).at("perplexity").get<double>(), std::exp(search.trials[0].loss));
}

TEST(DropJob, GivesTheSameTrialsWithAnyNumberOfThreads) {
  const RestoresThreads restores;
  const DepthFolder folder;
  DropRequest request = folder.drop();
  request.layers = 1;
  request.order = DropOrder::kPerplexity;
  request.common.force = true;
  std::vector<double> losses;
  for (const int threads : {1, 2}) {
    request.common.threads = threads;
    losses.push_back(std::get<DropSearch>(make_shallower(request).search).trials.at(0).loss);
  }
  EXPECT_NEAR(losses[0], losses[1], 1e-5);  // products add in another order
}

TEST(DropJob, WritesNothingInADryRun) {
  const DepthFolder folder;
  DropRequest request = folder.drop();
  request.layers = 2;
  expect_dry_run(folder, request, "depth drop");
}

TEST(DropJob, FindsWithResumeThatAnEarlierRunHadFinished) {
  const DepthFolder folder;
  DropRequest request = folder.drop();
  request.layers = 2;
  expect_earlier_result(make_shallower(request), request);
}

TEST(DropJob, RefusesAFolderThatIsThereUnlessItMayReplaceIt) {
  const DepthFolder folder;
  DropRequest request = folder.drop();
  request.indices = {{0, 0}};
  make_shallower(request);
  expect_error(ErrorKind::kUsage, {"dropped: exists", "--force"}, [&] { run(request, no_progress()); });
  request.common.force = true;
  request.indices = {{0, 1}};
  EXPECT_EQ(open_checkpoint(make_shallower(request).output)->config().num_layers(), 3);
}

TEST(DropJob, RefusesLayersThatDoNotExist) {
  const DepthFolder folder;
  DropRequest request = folder.drop();
  request.indices = {{3, 5}};
  expect_error(ErrorKind::kUsage, {"5"}, [&] { run(request, no_progress()); });
  EXPECT_THAT(folder.names(), ElementsAre("model", "text.txt"));
}

TEST(DropJob, RefusesToDropAllLayersOrNobodyKnowsHowMany) {
  const DepthFolder folder;
  DropRequest request = folder.drop();
  expect_error(ErrorKind::kUsage, {"--layers", "--ratio"}, [&] { run(request, no_progress()); });
  request.layers = kLayers;
  expect_error(ErrorKind::kUsage, {"--layers 5", "one must stay"}, [&] { run(request, no_progress()); });
}

TEST(DropJob, RefusesASlicedModel) {
  const DepthFolder folder;
  SliceRequest slicing;
  slicing.common = folder.common("slice");
  slicing.calibration = folder.text();
  slicing.average = 0.25;
  slicing.given_allocator = Allocator::kConstant;
  slicing.output = folder.in("sliced");
  run(slicing, no_progress());
  DropRequest request = folder.drop();
  request.common.model = folder.in("sliced");
  request.layers = 1;
  expect_error(ErrorKind::kUsage, {"sliced"}, [&] { run(request, no_progress()); });
}

// ---- Merge

struct RuleOfMerging {
  const char* name;
  at::Tensor (*merged)(const std::vector<at::Tensor>& layers);
};

at::Tensor sum_of_differences(const std::vector<at::Tensor>& layers) {
  at::Tensor sum = layers.front().clone();
  for (const at::Tensor& layer : layers) sum += layer - layers.front();
  return sum;
}

class EveryMergeRule : public ::testing::TestWithParam<RuleOfMerging> {};

TEST_P(EveryMergeRule, MakesOneLayerOfARange) {
  const DepthFolder folder;
  MergeRequest request = folder.merge();
  request.target_layers = 3;
  request.rule = *choice_named<MergeRule>(GetParam().name);
  const DepthResult result = make_shallower(request);
  EXPECT_EQ(std::get<MergeSearch>(result.search).rule, request.rule);
  EXPECT_EQ(result.record.at("merge_rule"), GetParam().name);
  const auto source = folder.source(), written = open_checkpoint(result.output);
  ASSERT_EQ(result.plan.layers.size(), 3U);
  for (int64_t layer = 0; layer < 3; ++layer) {
    for (const std::string part : {"mlp.up_proj.weight", "self_attn.o_proj.weight", "input_layernorm.weight"}) {
      const TensorInfo found = *written->find(layer_tensor_name(layer, part));
      std::vector<at::Tensor> merged;
      for (const int64_t from : result.plan.layers[static_cast<size_t>(layer)])
        merged.push_back(source->load(layer_tensor_name(from, part), found.shape, at::kFloat));
      EXPECT_TRUE(
          at::allclose(written->load(found.name, found.shape, at::kFloat), GetParam().merged(merged), 1e-5, 1e-6))
          << found.name;  // fp32 sums in another order
    }
  }
}

INSTANTIATE_TEST_SUITE_P(MergeJob, EveryMergeRule,
                         ::testing::Values(RuleOfMerging{"sum", sum_of_differences},
                                           RuleOfMerging{"mean",
                                                         [](const auto& layers) { return at::stack(layers).mean(0); }},
                                           RuleOfMerging{"last", [](const auto& layers) { return layers.back(); }}),
                         [](const auto& instance) { return std::string(instance.param.name); });

TEST(MergeJob, SaysHowLikeTheFinalHiddenStatesOfTheWrittenModelAre) {
  const DepthFolder folder;
  MergeRequest request = folder.merge();
  request.target_layers = 3;
  const DepthResult result = make_shallower(request);
  const auto final_states = [&](const Checkpoint& model) {
    const LayerWalk walk(model, {}, folder.windows().length, no_progress());
    const Head head = load_head(walk);
    const at::Tensor last = final_norm(head, folder.streams_of(model).back().to(at::kFloat)).to(at::kDouble);
    return last.reshape({folder.windows().count, -1});  // a window is one long vector
  };
  const double cosine = mean_cosine(final_states(*folder.source()), final_states(*open_checkpoint(result.output)));
  const auto& search = std::get<MergeSearch>(result.search);
  EXPECT_NEAR(search.result.cosine, cosine, 1e-5);
  EXPECT_EQ(result.record.at("cosine"), search.result.cosine);
  EXPECT_EQ(result.record.at("trials").size(), search.result.trials.size());
  EXPECT_LT(search.result.layers_run, search.result.layers_if_whole);
}

TEST(MergeJob, LeavesTheModelAsItIsWhereNothingIsAlike) {
  const DepthFolder folder;
  MergeRequest request = folder.merge();
  request.threshold = 1;  // which no cosine is above
  const DepthResult result = make_shallower(request);
  EXPECT_EQ(static_cast<int64_t>(result.plan.layers.size()), kLayers);
  EXPECT_EQ(std::get<MergeSearch>(result.search).result.cosine, 1);
  expect_same_weights(*open_checkpoint(result.output), *folder.source());
}

TEST(MergeJob, TakesARatioForTheLayersThatItStandsFor) {
  const DepthFolder folder;
  MergeRequest request = folder.merge();
  request.target_layers = 3;
  const DepthResult by_target = make_shallower(request);
  request.target_layers.reset();
  request.ratio = 0.4;
  request.common.force = true;
  EXPECT_EQ(make_shallower(request).plan.layers, by_target.plan.layers);
}

TEST(MergeJob, WritesNothingInADryRun) {
  const DepthFolder folder;
  expect_dry_run(folder, folder.merge(), "depth merge");
}

TEST(MergeJob, FindsWithResumeThatAnEarlierRunHadFinished) {
  const DepthFolder folder;
  MergeRequest request = folder.merge();
  request.target_layers = 3;
  expect_earlier_result(make_shallower(request), request);
}

TEST(MergeJob, RefusesANumberOfLayersThatCannotBeReached) {
  const DepthFolder folder;
  MergeRequest request = folder.merge();
  request.target_layers = 1;  // the last layer stays as it is
  expect_error(ErrorKind::kUsage, {"1"}, [&] { run(request, no_progress()); });
  EXPECT_THAT(folder.names(), ElementsAre("model", "text.txt"));
}

// ---- Streamline

TEST(StreamlineJob, LeavesOutANamedWindowAsDropDoes) {
  const DepthFolder folder;
  StreamlineRequest request = folder.streamline(ReplacementKind::kNone);
  request.start = 1;
  const DepthResult result = make_shallower(request);
  DropRequest dropping = folder.drop();
  dropping.indices = {{1, 2}};
  expect_same_weights(*open_checkpoint(result.output), *open_checkpoint(make_shallower(dropping).output));
  const auto& search = std::get<StreamlineSearch>(result.search);
  EXPECT_EQ(search.first, 1);
  EXPECT_EQ(search.count, 2);
  EXPECT_FALSE(search.is_repaired);
  EXPECT_EQ(result.record.at("removed").get<std::vector<int64_t>>(), (std::vector<int64_t>{1, 2}));
}

TEST(StreamlineJob, ChoosesTheWindowWithoutWhichTheLossOfHeldOutTextIsLeast) {
  const DepthFolder folder;
  const DepthResult result = streamline_by(folder, ReplacementKind::kNone);
  const TokenWindows held_out = folder.windows().part(6, 2);  // a quarter of the eight windows
  const auto& search = std::get<StreamlineSearch>(result.search);
  ASSERT_EQ(search.trials.size(), 4U);
  double least = std::numeric_limits<double>::infinity();
  for (const WindowTrial& trial : search.trials) {
    const double loss = loss_without(folder, trial.start, 2, held_out);
    EXPECT_NEAR(trial.loss, loss, 1e-4) << trial.start;
    least = std::min(least, loss);
  }
  EXPECT_NEAR(loss_without(folder, search.first, 2, held_out), least, 1e-4);
}

TEST(StreamlineJob, ChoosesByCosineTheWindowThatChangesTheStreamLeast) {
  const DepthFolder folder;
  StreamlineRequest request = folder.streamline(ReplacementKind::kNone);
  request.window = WindowChoice::kCosine;
  const DepthResult result = make_shallower(request);
  const std::vector<at::Tensor> streams = folder.streams_of(*folder.source());
  std::vector<double> cosines;
  for (size_t start = 0; start + 2 < streams.size(); ++start)
    cosines.push_back(mean_cosine(streams[start], streams[start + 2]));
  const auto& search = std::get<StreamlineSearch>(result.search);
  ASSERT_TRUE(search.scores.has_value());
  EXPECT_THAT(search.scores->values, Pointwise(DoubleNear(1e-5), cosines));
  EXPECT_EQ(search.first, std::max_element(cosines.begin(), cosines.end()) - cosines.begin());
}

class EveryRepair : public ::testing::TestWithParam<ReplacementKind> {};

// The map that changes nothing is among those that the fit chooses from.
TEST_P(EveryRepair, BringsTheStreamNearerToTheOneBehindTheLayersThatWent) {
  const DepthFolder folder;
  const auto error_behind_cut = [&](ReplacementKind replace) {
    StreamlineRequest request = folder.streamline(replace);
    request.start = 2;
    request.common.force = true;
    const DepthResult result = make_shallower(request);
    EXPECT_EQ(std::get<StreamlineSearch>(result.search).is_repaired, replace != ReplacementKind::kNone);
    const at::Tensor wanted = folder.streams_of(*folder.source())[4];
    const at::Tensor found = folder.streams_of(*open_checkpoint(result.output))[2];
    return ((found - wanted).square().sum(1) / wanted.square().sum(1)).sum().item<double>();
  };
  EXPECT_LT(error_behind_cut(GetParam()), error_behind_cut(ReplacementKind::kNone));
}

INSTANTIATE_TEST_SUITE_P(StreamlineJob, EveryRepair,
                         ::testing::Values(ReplacementKind::kLinear, ReplacementKind::kLinearStream),
                         [](const auto& instance) {
                           std::string name = name_of(instance.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

class EveryReplacement : public ::testing::TestWithParam<ReplacementKind> {};

TEST_P(EveryReplacement, HasTheLossThatTrainingMeasuredOnHeldOutText) {
  const DepthFolder folder;
  StreamlineRequest request = folder.streamline(GetParam());
  request.start = 2;
  const DepthResult result = make_shallower(request);
  const auto& search = std::get<StreamlineSearch>(result.search);
  ASSERT_TRUE(search.training.has_value());
  double least = std::numeric_limits<double>::infinity();
  for (const TrainingPoint& point : search.training->points) least = std::min(least, point.validation_loss);
  EXPECT_LT(least, search.training->points.front().validation_loss);
  EXPECT_NEAR(loss_of(*open_checkpoint(result.output), folder.windows().part(6, 2)), least, 1e-4);
  EXPECT_EQ(search.training->updates, 4);
  EXPECT_EQ(search.training->tokens, 4 * 2 * 32);
  EXPECT_EQ(search.first, 1);  // what was trained stands for the layer in front too
  EXPECT_EQ(search.count, 3);
  EXPECT_EQ(to_text(result.record.at("training")), to_text(to_json(*search.training)));
}

INSTANTIATE_TEST_SUITE_P(StreamlineJob, EveryReplacement,
                         ::testing::Values(ReplacementKind::kLayer, ReplacementKind::kSwiglu, ReplacementKind::kFfn));

TEST(StreamlineJob, WritesTheModelAsItIsWhenNoLayerIsToGo) {
  const DepthFolder folder;
  StreamlineRequest request = folder.streamline(ReplacementKind::kLinear);
  request.layers = 0;
  const DepthResult result = make_shallower(request);
  EXPECT_EQ(std::get<StreamlineSearch>(result.search).count, 0);
  expect_same_weights(*open_checkpoint(result.output), *folder.source());
}

TEST(StreamlineJob, WritesNothingInADryRun) {
  const DepthFolder folder;
  expect_dry_run(folder, folder.streamline(ReplacementKind::kLinear), "depth streamline");
  expect_dry_run(folder, folder.streamline(ReplacementKind::kLayer), "depth streamline");
}

TEST(StreamlineJob, FindsWithResumeThatAnEarlierRunHadFinished) {
  const DepthFolder folder;
  const StreamlineRequest request = folder.streamline(ReplacementKind::kLinear);
  expect_earlier_result(make_shallower(request), request);
}

TEST(StreamlineJob, RefusesOptionsThatWouldDoNothing) {
  const DepthFolder folder;
  StreamlineRequest request = folder.streamline(ReplacementKind::kNone);
  request.common.given = {{"--ridge", "1"}};
  expect_error(ErrorKind::kUsage, {"--ridge", "--replace none", "linear"}, [&] { run(request, no_progress()); });
  request = folder.streamline(ReplacementKind::kLinear);
  request.common.given = {{"--epochs", "2"}};
  expect_error(ErrorKind::kUsage, {"--epochs", "nothing is trained", "--replace linear"},
               [&] { run(request, no_progress()); });
}

TEST(StreamlineJob, RefusesAWindowThatDoesNotFit) {
  const DepthFolder folder;
  StreamlineRequest request = folder.streamline(ReplacementKind::kLinear);
  for (const int64_t start : {0, 4}) {
    request.start = start;
    expect_error(ErrorKind::kUsage, {"--window " + std::to_string(start), "1 to 3"},
                 [&] { run(request, no_progress()); });
  }
}

TEST(StreamlineJob, RefusesToTrainInPrecisionThatIsTooLow) {
  const DepthFolder folder;
  StreamlineRequest request = folder.streamline(ReplacementKind::kLayer);
  request.common.dtype = "fp16";
  expect_error(ErrorKind::kUsage, {"fp16", "bf16"}, [&] { run(request, no_progress()); });
}

}  // namespace
}  // namespace dynslice
