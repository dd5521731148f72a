#include "dynslice/tensor/weight_arena.h"

#include <gtest/gtest.h>

#include "aten.h"

namespace dynslice {
namespace {

TEST(WeightArena, KeepsCopiesThatDoNotOverlap) {
  WeightArena arena;
  std::vector<at::Tensor> originals, kept;
  for (int64_t i = 1; i < 20; ++i) {
    originals.push_back(at::full({i, 7}, i, i % 2 == 0 ? at::kFloat : at::kBFloat16));
    kept.push_back(arena.keep(originals.back()));
  }
  for (size_t i = 0; i < kept.size(); ++i) {
    EXPECT_TRUE(kept[i].equal(originals[i]));
    EXPECT_FALSE(kept[i].is_alias_of(originals[i]));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(kept[i].const_data_ptr()) % 64, 0U);
  }
}

TEST(WeightArena, TensorsOutliveIt) {
  at::Tensor kept;
  {
    WeightArena arena;
    kept = arena.keep(at::arange(1000));
  }
  EXPECT_TRUE(kept.equal(at::arange(1000)));
}

TEST(WeightArena, HasRoomForWhatIsLargerThanABlock) {
  WeightArena arena;
  const at::Tensor small = arena.keep(at::ones({3}));
  const at::Tensor large = arena.zeros({(int64_t{300} << 20) / 4}, at::kFloat);  // untouched pages take no memory
  const at::Tensor after = arena.keep(at::ones({3}));
  large[-1] = 5;
  EXPECT_EQ(large[-1].item<float>(), 5);
  EXPECT_TRUE(small.equal(at::ones({3})));
  EXPECT_TRUE(after.equal(at::ones({3})));
}

TEST(WeightArena, TakesEmptyTensors) {
  WeightArena arena;
  EXPECT_EQ(arena.keep(at::empty({0, 5})).sizes(), (std::vector<int64_t>{0, 5}));
}

}  // namespace
}  // namespace dynslice
