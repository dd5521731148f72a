#include "dynslice/jobs/inspect.h"

#include <gtest/gtest.h>

#include <variant>

#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/model/checkpoint.h"
#include "dynslice/support/error.h"
#include "unit/jobs/model_folder.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::expect_error;
using testing::ModelFolder;

TEST(InspectJob, TellsShapesAndSizesOfAModel) {
  const ModelFolder folder;
  InspectRequest request;
  request.common = folder.common("inspect");
  const auto result = std::get<InspectResult>(run(request, no_progress()));
  const auto model = open_checkpoint(folder / "model");
  EXPECT_EQ(result.path, folder / "model");
  EXPECT_EQ(result.config.num_layers(), 3);
  EXPECT_EQ(result.cost.parameters, count_cost(model->config()).parameters);
  EXPECT_EQ(result.bytes, stored_bytes(*model));
  EXPECT_EQ(result.bytes_by_dtype.at("F32"), result.bytes);
  const OrderedJson json = to_json(result);
  EXPECT_EQ(json.at("vocab_size"), 256);
  EXPECT_EQ(json.at("shapes").size(), 3U);
}

TEST(InspectJob, NamesAModelThatIsNotThere) {
  const ModelFolder folder;
  InspectRequest request;
  request.common = folder.common("inspect");
  request.common.model = folder.in("no_such_model");
  expect_error(ErrorKind::kMissingData, {"no_such_model"}, [&] { run(request, no_progress()); });
}

}  // namespace
}  // namespace dynslice
