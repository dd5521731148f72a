#include "dynslice/walk/journaled_walk.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <vector>

#include "aten.h"
#include "tiny_model.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

// Lists the layers that it visits, and stops in front of layer `dies_at`.
struct ListingWalk {
  ListingWalk(const Checkpoint& model, const TokenWindows& text)
      : windows(text), walk(model, {}, text.length, no_progress()), stream(walk.empty_stream()) {}

  void run(const JournalPhase& journal, int64_t dies_at = -1) {
    run_journaled(walk, journal,
                  {.task = "Listing",
                   .tokens = windows.tokens(),
                   .state =
                       [&] {
                         WalkState state;
                         state.keep("layers", layers);
                         state.keep("stream", stream);
                         return state;
                       },
                   .begin =
                       [&] {
                         ++beginnings;
                         stream = walk.embed(windows);
                       },
                   .visit =
                       [&](LayerStep& step) {
                         if (step.index() == dies_at) throw std::runtime_error("killed");
                         layers.push_back(step.index());
                         step.transform(
                             stream, [&](const at::Tensor& x) { return forward_layer(step.layer, step.context, x); });
                       }});
  }

  const TokenWindows& windows;
  LayerWalk walk;
  ResidualStream stream;
  std::vector<int64_t> layers;
  int beginnings = 0;
};

TEST(JournaledWalk, GoesOnBehindTheLayerThatWasKeptLast) {
  const testing::MemoryCheckpoint model = testing::tiny_model({.layers = 4});
  const TokenWindows windows = testing::random_windows(3, 8, 61);
  ListingWalk whole(model, windows);
  whole.run({});
  EXPECT_EQ(whole.beginnings, 1);

  const testing::TemporaryFolder folder;
  const auto open = [&](bool resume) {
    return std::make_unique<Journal>(std::make_shared<WorkFolder>(folder / "out.partial"), OrderedJson{{"text", "x"}},
                                     OrderedJson(), JournalOptions{.resume = resume, .pace = JournalPace::kEvery});
  };
  {
    ListingWalk killed(model, windows);
    const auto journal = open(false);
    EXPECT_THROW(killed.run({*journal, "listing"}, 2), std::runtime_error);
  }
  ListingWalk resumed(model, windows);
  const auto journal = open(true);
  resumed.run({*journal, "listing"});
  EXPECT_EQ(resumed.beginnings, 0);
  EXPECT_EQ(resumed.layers, whole.layers);
  EXPECT_TRUE(at::equal(resumed.stream.gather(), whole.stream.gather()));
}

}  // namespace
}  // namespace dynslice
