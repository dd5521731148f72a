#include "dynslice/plan/slice_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>

#include "dynslice/support/error.h"
#include "tiny_model.h"

namespace dynslice {
namespace {

using ::testing::HasSubstr;

class PlanFile : public ::testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }

  std::string error_of(const std::string& content) {
    std::ofstream(path_) << content;
    try {
      read_plan(path_, config_);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kBadInput);
      return error.what();
    }
    return "no error";
  }

  ModelConfig config_ = testing::tiny_config({.hidden_size = 32, .layers = 3});
  std::filesystem::path path_ =
      std::filesystem::temp_directory_path() / ("plan-" + std::to_string(::getpid()) + ".json");
};

TEST(RoundDimensions, KeepTheMeanWithinHalfAMultiple) {
  std::mt19937 random(5);
  std::uniform_real_distribution<double> uniform(0.01, 0.7);
  for (const int64_t round_to : {1, 8, 16, 64}) {
    for (int trial = 0; trial < 200; ++trial) {
      std::vector<double> ratios(30);
      double exact = 0;
      for (double& ratio : ratios) exact += 1 - (ratio = uniform(random));
      const auto dims = round_dimensions(ratios, 576, round_to);
      const double mean = static_cast<double>(std::accumulate(dims.begin(), dims.end(), int64_t{0})) / 30;
      EXPECT_NEAR(mean, 576 * exact / 30, 0.5 * static_cast<double>(round_to));
      for (size_t i = 0; i < dims.size(); ++i) {
        EXPECT_EQ(dims[i] % round_to, 0);
        EXPECT_NEAR(static_cast<double>(dims[i]), 576 * (1 - ratios[i]), static_cast<double>(round_to));
      }
    }
  }
}

TEST(RoundDimensions, GiveEqualRatiosEqualWidths) {
  EXPECT_EQ(round_dimensions({0.25, 0.25, 0.25}, 576, 8), std::vector<int64_t>(3, 432));
  EXPECT_EQ(round_dimensions({0.2, 0.2, 0.2}, 576, 8), std::vector<int64_t>(3, 464));
}

TEST(RoundDimensions, ByOneRoundsHalvesToEvenAsNumPyDoes) {
  EXPECT_EQ(round_dimensions({0.5, 0.25}, 5, 1), (std::vector<int64_t>{2, 4}));
}

TEST(RoundDimensions, KeepTheWholeWidthWhereNothingIsSliced) {
  EXPECT_EQ(round_dimensions({0.0, 0.5}, 100, 8).front(), 100);
}

TEST_F(PlanFile, MaySayHowManyHeadsAreLeft) {
  const std::string begin = R"({"method": "modular", "dims": [96, 64, 32], )";
  std::ofstream(path_) << begin << R"("heads": [4, 2, 0], "kv_heads": [2, 2, 0]})";
  const SlicePlan plan = read_plan(path_, config_);
  EXPECT_EQ(plan.heads, (std::vector<HeadCount>{{4, 2}, {2, 2}, {0, 0}}));
  const ModelConfig smaller = sliced_config(config_, plan);
  EXPECT_EQ(smaller.layers[1].num_attention_heads, 2);
  EXPECT_FALSE(smaller.layers[2].has_attention());
  std::ofstream(path_) << to_text(to_json(plan));
  EXPECT_EQ(read_plan(path_, config_).heads, plan.heads);

  EXPECT_THAT(error_of(begin + R"("heads": [4, 3, 4], "kv_heads": [2, 2, 2]})"), HasSubstr("layer 1 cannot be left"));
  EXPECT_THAT(error_of(begin + R"("heads": [4, 3, 4], "kv_heads": [2, 1, 2]})"), HasSubstr("2 at most"));
  EXPECT_THAT(error_of(begin + R"("heads": [0, 4, 4], "kv_heads": [0, 2, 2]})"), HasSubstr("layer 0"));
  EXPECT_THAT(error_of(begin + R"("heads": [4, 4], "kv_heads": [2, 2]})"), HasSubstr("heads for 2 layers"));
  EXPECT_THAT(error_of(begin + R"("kv_heads": [2, 2, 2]})"), HasSubstr("heads"));
  EXPECT_THAT(error_of(R"({"dims": [32, 32, 32], "heads": [4, 4, 4], "kv_heads": [2, 2, 2]})"),
              HasSubstr("only a modular plan"));
  config_.o_bias = true;  // it would go with the last head
  EXPECT_THAT(error_of(begin + R"("heads": [4, 2, 0], "kv_heads": [2, 2, 0]})"), HasSubstr("cannot be without any"));
}

TEST_F(PlanFile, RoundTripsThroughJson) {
  SlicePlan plan;
  plan.allocator = "lr";
  plan.average_ratio = 0.25;
  plan.base = 0.1;
  plan.hidden_size = 32;
  plan.ratios = {0.25, 0.0, 0.5};
  plan.dims = {24, 32, 16};
  plan.head_width = 24;
  std::ofstream(path_) << to_json(plan).dump(2);
  const SlicePlan read = read_plan(path_, config_);
  EXPECT_EQ(to_json(read).dump(), to_json(plan).dump());
}

TEST_F(PlanFile, TakesRatiosOrWidthsAlone) {
  std::ofstream(path_) << R"({"ratios": [0.25, 0, 0.5], "round_to": 8})";
  EXPECT_EQ(read_plan(path_, config_).dims, (std::vector<int64_t>{24, 32, 16}));
  std::ofstream(path_, std::ios::trunc) << R"({"dims": [24, 32, 16]})";
  EXPECT_DOUBLE_EQ(read_plan(path_, config_).ratios[2], 0.5);
}

TEST_F(PlanFile, RefusesWhatIsNoPlanForTheModel) {
  EXPECT_THAT(error_of("{"), HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of("[]"), HasSubstr("JSON object"));
  EXPECT_THAT(error_of("{}"), HasSubstr("\"ratios\""));
  EXPECT_THAT(error_of(R"({"ratios": [0.1, 0.2]})"), HasSubstr("is a plan for 2 layers"));
  EXPECT_THAT(error_of(R"({"ratios": [0.1, 1.2, 0.1]})"),
              HasSubstr("slice ratio for layer 1 is 1.2; it must be in [0, 0.95]"));
  EXPECT_THAT(error_of(R"({"ratios": [0.1, -0.5, 0.1]})"), HasSubstr("layer 1"));
  EXPECT_THAT(error_of(R"({"ratios": [0.1, "x", 0.1]})"), HasSubstr("numbers"));
  EXPECT_THAT(error_of(R"({"dims": [0, 8, 8]})"), HasSubstr("layer 0"));
  EXPECT_THAT(error_of(R"({"dims": [64, 8, 8]})"), HasSubstr("layer 0"));
  EXPECT_THAT(error_of(R"({"dims": [8, 8, 8], "hidden_size": 64})"), HasSubstr("width 64"));
  EXPECT_THAT(error_of(R"({"dims": [8, 8, 8], "head_width": 99})"), HasSubstr("head_width"));
  EXPECT_THAT(error_of(R"({"ratios": [0.5, 0.5, 0.5], "dims": [16, 32, 16]})"), HasSubstr("remove the list"));
}

}  // namespace
}  // namespace dynslice
