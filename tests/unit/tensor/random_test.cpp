#include "dynslice/tensor/random.h"

#include <gtest/gtest.h>

#include "aten.h"

namespace dynslice {
namespace {

TEST(SeededGenerator, GivesWhatTheDefaultOneGivesAfterItsSeed) {
  at::manual_seed(7);
  const at::Tensor expected = at::rand({100});
  EXPECT_TRUE(at::equal(at::rand({100}, seeded_generator(at::kCPU, 7)), expected));
  EXPECT_FALSE(at::equal(at::rand({100}, seeded_generator(at::kCPU, 8)), expected));
}

TEST(SeededGenerator, LeavesTheDefaultOneAsItIs) {
  at::manual_seed(7);
  const at::Tensor expected = at::rand({100});
  at::manual_seed(7);
  static_cast<void>(at::rand({100}, seeded_generator(at::kCPU, 8)));
  EXPECT_TRUE(at::equal(at::rand({100}), expected));
}

}  // namespace
}  // namespace dynslice
