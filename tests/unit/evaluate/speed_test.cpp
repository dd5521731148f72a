#include "dynslice/evaluate/speed.h"

#include <gtest/gtest.h>

#include "tiny_model.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

TEST(Speed, CountsEveryRepeatAndEveryTokenButTheWarmUp) {
  const ResidentModel dense(testing::tiny_model(), {}, no_progress());
  const ResidentModel other(testing::tiny_model({.layers = 2}), {}, no_progress());
  const auto speeds = measure_speed({&dense, &other},
                                    {.prompt_tokens = 9, .decode_tokens = 4, .repeats = 3, .batch = 2}, no_progress());
  ASSERT_EQ(speeds.size(), 2U);
  for (const Speed& speed : speeds) {
    EXPECT_EQ(speed.prefill_seconds.size(), 3U);
    EXPECT_EQ(speed.decode_seconds.size(), 3U);
    EXPECT_EQ(speed.token_seconds.size(), 12U);
    EXPECT_DOUBLE_EQ(speed.prefill_tokens_per_second, 18 / quantile(speed.prefill_seconds, 0.5));
    EXPECT_DOUBLE_EQ(speed.decode_tokens_per_second, 8 / quantile(speed.decode_seconds, 0.5));
  }
  // Keys and values, fp32, of 2 sequences of 13 tokens in 3 layers of 2 heads of 8.
  EXPECT_EQ(speeds[0].cache_bytes, 2 * 4 * 2 * 13 * 3 * 2 * 8);
}

TEST(Speed, WithoutDecodedTokensMeasuresThePromptAlone) {
  const ResidentModel model(testing::tiny_model(), {}, no_progress());
  const auto speeds = measure_speed({&model}, {.prompt_tokens = 5, .decode_tokens = 0, .repeats = 1}, no_progress());
  EXPECT_GT(speeds[0].prefill_tokens_per_second, 0);
  EXPECT_EQ(speeds[0].decode_tokens_per_second, 0);
}

TEST(Speed, RefusesMoreTokensThanTheModelHasPositions) {
  const ResidentModel model(testing::tiny_model(), {}, no_progress());
  testing::expect_error(ErrorKind::kUsage, {"129", "128"}, [&] {
    measure_speed({&model}, {.prompt_tokens = 128, .decode_tokens = 1, .repeats = 1}, no_progress());
  });
}

TEST(Quantile, InterpolatesBetweenNeighbours) {
  EXPECT_DOUBLE_EQ(quantile({4, 1, 3, 2}, 0.5), 2.5);
  EXPECT_DOUBLE_EQ(quantile({4, 1, 3, 2}, 1), 4);
  EXPECT_DOUBLE_EQ(quantile({7}, 0.9), 7);
}

TEST(GemmPeak, NamesTheLibraryThatReachedIt) {
  const GemmPeak peak = measure_gemm_peak(at::kFloat);
  EXPECT_GT(peak.gflops, 0);
  EXPECT_TRUE(peak.library == "MKL" || peak.library == "oneDNN") << peak.library;
}

}  // namespace
}  // namespace dynslice
