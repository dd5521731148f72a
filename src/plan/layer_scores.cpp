#include "dynslice/plan/layer_scores.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "dynslice/support/error.h"

namespace dynslice {

std::vector<int64_t> by_importance(const LayerScores& scores) {
  const double sign = scores.more_important == MoreImportant::kHigh ? 1 : -1;
  std::vector<int64_t> order(scores.values.size());
  std::iota(order.rbegin(), order.rend(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return sign * scores.values[static_cast<size_t>(a)] < sign * scores.values[static_cast<size_t>(b)];
  });
  return order;
}

OrderedJson to_json(const LayerScores& scores) {
  OrderedJson json;
  json["kind"] = "dynslice.scores";
  json["metric"] = scores.metric;
  json["more_important"] = scores.more_important == MoreImportant::kLow ? "low" : "high";
  json["values"] = scores.values;
  if (!scores.matrix.empty()) json["matrix"] = scores.matrix;
  json["tokens"] = scores.tokens;
  json["skipped_tokens"] = scores.skipped_tokens;
  json["provenance"] = scores.provenance;
  return json;
}

LayerScores read_scores(const std::filesystem::path& path) {
  const Json json = parse_json_file(path);
  const JsonReader reader(json, path.string());
  LayerScores scores;
  scores.metric = reader.string("metric");
  const std::string direction = reader.string("more_important");
  if (direction != "low" && direction != "high") reader.fail("more_important", "\"low\" or \"high\"");
  scores.more_important = direction == "low" ? MoreImportant::kLow : MoreImportant::kHigh;
  if (!reader.has("values") || !json["values"].is_array() || json["values"].empty())
    reader.fail("values", "a list of numbers");
  for (const Json& value : json["values"]) {
    if (!value.is_number() || !std::isfinite(value.get<double>())) reader.fail("values", "a list of finite numbers");
    scores.values.push_back(value.get<double>());
  }
  scores.tokens = reader.integer_or("tokens", 0);
  scores.skipped_tokens = reader.integer_or("skipped_tokens", 0);
  if (reader.has("provenance")) scores.provenance = json["provenance"];
  return scores;
}

}  // namespace dynslice
