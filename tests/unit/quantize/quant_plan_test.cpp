#include "dynslice/quantize/quant_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "dynslice/support/error.h"
#include "tiny_model.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

using ::testing::ElementsAre;

const std::vector<int64_t> kOrder = {2, 0, 3, 1};  // the least important first

TEST(BitsByShare, GivesTheLeastImportantLayersTheLowestLevel) {
  EXPECT_THAT(bits_by_share(kOrder, {8, 4}, {0.5}), ElementsAre(4, 8, 4, 8));
  EXPECT_THAT(bits_by_share(kOrder, {8, 4}, {0.0}), ElementsAre(8, 8, 8, 8));
  EXPECT_THAT(bits_by_share(kOrder, {8, 4}, {1.0}), ElementsAre(4, 4, 4, 4));
  EXPECT_THAT(bits_by_share(kOrder, {8, 4, 2}, {0.5, 0.25}), ElementsAre(4, 8, 2, 4));
}

TEST(BitsByShare, RefusesMoreThanAllLayers) { EXPECT_THROW(bits_by_share(kOrder, {8, 4, 2}, {0.8, 0.4}), Error); }

TEST(BitsByAverage, LowersAsFewLayersAsWillDo) {
  const ModelConfig config = testing::tiny_config({.layers = 4});
  EXPECT_THAT(bits_by_average(config, kOrder, {8, 4}, 8.0), ElementsAre(8, 8, 8, 8));
  EXPECT_THAT(bits_by_average(config, kOrder, {8, 4}, 7.0), ElementsAre(8, 8, 4, 8));
  EXPECT_THAT(bits_by_average(config, kOrder, {8, 4}, 6.9), ElementsAre(4, 8, 4, 8));
  EXPECT_THAT(bits_by_average(config, kOrder, {8, 4}, 4.0), ElementsAre(4, 4, 4, 4));
  // Between the two levels beside it.
  EXPECT_THAT(bits_by_average(config, kOrder, {8, 4, 2}, 3.5), ElementsAre(4, 4, 2, 4));
  EXPECT_THROW(bits_by_average(config, kOrder, {8, 4}, 3.9), Error);
}

TEST(BitsByAverage, CountsLayersByTheirWeights) {
  ModelConfig config = testing::tiny_config({.layers = 2});
  config.layers[1].intermediate_size *= 4;
  const std::vector<int> bits = {8, 4};
  const auto small = static_cast<double>(layer_weights(config, 0)),
             large = static_cast<double>(layer_weights(config, 1));
  EXPECT_DOUBLE_EQ(average_bits(config, bits), (8 * small + 4 * large) / (small + large));
}

TEST(RandomOrder, HoldsEveryLayerOnceAndFollowsTheSeed) {
  const std::vector<int64_t> order = random_order(30, 1);
  EXPECT_EQ(std::set<int64_t>(order.begin(), order.end()).size(), 30U);
  EXPECT_EQ(order, random_order(30, 1));
  EXPECT_NE(order, random_order(30, 2));
}

class PlanFile : public ::testing::Test {
 protected:
  std::filesystem::path write(const std::string& text) {
    const auto path = folder_.path() / "plan.json";
    std::ofstream(path) << text;
    return path;
  }
  testing::TemporaryFolder folder_;
  ModelConfig config_ = testing::tiny_config({.layers = 3});
};

TEST_F(PlanFile, ComesBackAsItWasWritten) {
  QuantPlan plan{"zd", {8, 4, 2}, {}};
  plan.provenance["layers_from_least_important"] = {2, 1, 0};
  const QuantPlan read = read_quant_plan(write(to_text(to_json(plan))), config_);
  EXPECT_EQ(read.order, plan.order);
  EXPECT_EQ(read.bits, plan.bits);
}

TEST_F(PlanFile, IsRefusedWithTheReason) {
  const auto refuses = [&](const std::string& text, const std::string& reason) {
    try {
      read_quant_plan(write(text), config_);
      ADD_FAILURE() << text << " was read";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kBadInput);
      EXPECT_THAT(error.what(), ::testing::HasSubstr(reason)) << text;
    }
  };
  refuses(R"({"kind": "dynslice.scores", "bits": [8, 4, 2]})", "kind");
  refuses(R"({"kind": "dynslice.quant_plan"})", "bits");
  refuses(R"({"kind": "dynslice.quant_plan", "bits": [8, 4, 1]})", "bits");
  refuses(R"({"kind": "dynslice.quant_plan", "bits": [8, 4, 9]})", "bits");
  refuses(R"({"kind": "dynslice.quant_plan", "bits": [8, 4, 2.5]})", "bits");
  refuses(R"({"kind": "dynslice.quant_plan", "bits": [8, 4]})", "3");
  refuses("[", "plan.json");
}

}  // namespace
}  // namespace dynslice
