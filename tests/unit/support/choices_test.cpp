#include "dynslice/support/choices.h"

#include <gtest/gtest.h>

#include <set>

#include "dynslice/depth/choices.h"
#include "dynslice/evaluate/choices.h"
#include "dynslice/plan/choices.h"
#include "dynslice/quantize/choices.h"
#include "dynslice/score/choices.h"
#include "dynslice/train/choices.h"

namespace dynslice {
namespace {

template <typename E>
class ChoiceTable : public ::testing::Test {};
using Tables =
    ::testing::Types<WidthMethod, BasisScope, DirectionChoice, Allocator, PlanPreset, Refit, NeuronChoice,
                     AttentionChoice, TokenWeights, SizeQuantity, DropOrder, MergeRule, ReplacementKind,
                     ReplacementLoss, StreamFormat, KeptActivations, QuantizeMethod, PerplexityProtocol, MetricKind>;
TYPED_TEST_SUITE(ChoiceTable, Tables);

TYPED_TEST(ChoiceTable, NamesEveryValueOnceAndFindsItByItsName) {
  std::set<std::string> names;
  std::set<TypeParam> values;
  for (const auto& row : choices(TypeParam())) {
    EXPECT_TRUE(names.insert(std::string(row.name)).second) << row.name;
    EXPECT_TRUE(values.insert(row.value).second) << row.name;
    EXPECT_EQ(name_of(row.value), row.name);
    EXPECT_EQ(choice_named<TypeParam>(row.name), row.value);
  }
  EXPECT_EQ(choice_named<TypeParam>("no such name"), std::nullopt);
  EXPECT_EQ(choice_names<TypeParam>().size(), names.size());
}

TEST(Choices, ListTheNamesOfRowsAsASentenceDoes) {
  const auto first = [](size_t count) {
    return names_where<BasisScope>([&](const auto& row) { return static_cast<size_t>(row.value) < count; });
  };
  EXPECT_EQ(first(0), "");
  EXPECT_EQ(first(1), "block");
  EXPECT_EQ(first(2), "block and layer");
  EXPECT_EQ(first(3), "block, layer and global");
}

}  // namespace
}  // namespace dynslice
