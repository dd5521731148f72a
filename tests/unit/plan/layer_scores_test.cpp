#include "dynslice/plan/layer_scores.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace dynslice {
namespace {

using ::testing::ElementsAre;

TEST(ByImportance, FollowsTheScoresOwnDirection) {
  LayerScores scores;
  scores.values = {0.3, 0.1, 0.2};
  scores.more_important = MoreImportant::kHigh;
  EXPECT_THAT(by_importance(scores), ElementsAre(1, 2, 0));
  scores.more_important = MoreImportant::kLow;
  EXPECT_THAT(by_importance(scores), ElementsAre(0, 2, 1));
}

TEST(ByImportance, PutsTheHigherOfEqualLayersFirst) {
  LayerScores scores;
  scores.values = {0.5, 0.1, 0.5, 0.1};
  scores.more_important = MoreImportant::kHigh;
  EXPECT_THAT(by_importance(scores), ElementsAre(3, 1, 2, 0));
  scores.more_important = MoreImportant::kLow;
  EXPECT_THAT(by_importance(scores), ElementsAre(2, 0, 3, 1));
}

}  // namespace
}  // namespace dynslice
