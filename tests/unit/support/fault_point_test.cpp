#include "dynslice/support/fault_point.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <string>
#include <vector>

namespace dynslice {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

volatile std::sig_atomic_t raised = 0;

// Saves of these phases; the numbers of those, from 1 on, at which SIGUSR1 came while this moment was reached.
std::vector<size_t> signals_in(FaultPoint fault, const std::vector<std::string>& phases, SaveMoment moment) {
  const auto before = std::signal(SIGUSR1, [](int) { raised = raised + 1; });
  std::vector<size_t> numbers;
  for (size_t i = 0; i < phases.size(); ++i) {
    fault.begin(phases[i]);
    for (const SaveMoment reached : {SaveMoment::kData, SaveMoment::kState, SaveMoment::kSaved}) {
      const auto earlier = raised;
      fault.reached(reached);
      for (auto k = earlier; k < raised; ++k) {
        EXPECT_EQ(reached, moment);
        numbers.push_back(i + 1);
      }
    }
  }
  std::signal(SIGUSR1, before);
  return numbers;
}

TEST(FaultPoint, RaisesItsSignalsOnceAtTheSaveOfItsNumber) {
  for (const SaveMoment moment : {SaveMoment::kData, SaveMoment::kState, SaveMoment::kSaved}) {
    EXPECT_THAT(signals_in({"", 2, moment, {SIGUSR1}}, {"a", "b", "a", "b"}, moment), ElementsAre(2U));
    EXPECT_THAT(signals_in({"", 3, moment, {SIGUSR1, SIGUSR1}}, {"a", "b", "a", "b"}, moment), ElementsAre(3U, 3U));
  }
}

TEST(FaultPoint, CountsTheSavesOfItsPhaseAlone) {
  const SaveMoment moment = SaveMoment::kSaved;
  EXPECT_THAT(signals_in({"b", 2, moment, {SIGUSR1}}, {"a", "b", "a", "b", "b"}, moment), ElementsAre(4U));
  EXPECT_THAT(signals_in({"c", 1, moment, {SIGUSR1}}, {"a", "b"}, moment), IsEmpty());
}

TEST(FaultPoint, IsNoneByDefault) { EXPECT_THAT(signals_in({}, {"", "a"}, SaveMoment::kSaved), IsEmpty()); }

}  // namespace
}  // namespace dynslice
