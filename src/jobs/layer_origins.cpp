#include "jobs/layer_origins.h"

#include <filesystem>
#include <numeric>
#include <optional>
#include <string>
#include <utility>

#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/json.h"

namespace dynslice {
namespace {

// Records of how the model came to be, the last step first.
std::vector<OrderedJson> story_of(const Checkpoint& checkpoint) {
  std::vector<OrderedJson> story;
  const std::filesystem::path file = checkpoint.path() / "dynslice.json";
  std::error_code error;
  if (!std::filesystem::is_regular_file(file, error)) return story;
  const std::string text = read_file(file);
  parse_json(text, file.string());
  for (OrderedJson record = OrderedJson::parse(text); record.is_object();) {
    OrderedJson earlier = record.contains("source_record") ? record["source_record"] : OrderedJson();
    record.erase("source_record");
    story.push_back(std::move(record));
    record = std::move(earlier);
  }
  return story;
}

// A step that changed the layers: of every layer, the first one of the model before that it is made of.
struct DepthStep {
  std::vector<int64_t> first_sources;
  int64_t layers_before = 0;
};

std::optional<DepthStep> depth_step(const OrderedJson& record, const std::string& where) {
  const auto method = record.find("method");
  if (method == record.end() || !method->is_string() || !method->get<std::string>().starts_with("depth "))
    return std::nullopt;
  DepthStep step;
  try {
    const auto integer = [](const OrderedJson& value) {
      if (!value.is_number_integer()) throw OrderedJson::other_error::create(501, "no integer", nullptr);
      return value.get<int64_t>();
    };
    step.layers_before = integer(record.at("layers").at("before"));
    for (const auto& layers : record.at("plan").at("layers")) step.first_sources.push_back(integer(layers.at(0)));
  } catch (const OrderedJson::exception&) {
    throw_error(ErrorKind::kBadInput, where,
                ": of a depth step, key \"plan.layers\" must be a list of lists of layers, and \"layers.before\" their "
                "number before");
  }
  return step;
}

}  // namespace

std::vector<int64_t> boundaries_in_original(const Checkpoint& checkpoint, const Checkpoint& original) {
  const std::string where = (checkpoint.path() / "dynslice.json").string();
  std::vector<int64_t> first(static_cast<size_t>(checkpoint.config().num_layers()));
  std::iota(first.begin(), first.end(), 0);
  int64_t layers = checkpoint.config().num_layers();  // of the model that `first` speaks of
  const int64_t wanted = original.config().num_layers();
  for (const OrderedJson& record : story_of(checkpoint)) {
    const auto step = depth_step(record, where);
    if (!step || layers == wanted) continue;
    for (int64_t& layer : first) {
      if (layer < 0 || layer >= static_cast<int64_t>(step->first_sources.size()))
        throw_error(ErrorKind::kBadInput, where, ": its plan has no layer ", layer);
      layer = step->first_sources[static_cast<size_t>(layer)];
    }
    layers = step->layers_before;
  }
  if (layers != wanted) {
    throw_error(ErrorKind::kUsage, original.path().string(), ": has ", wanted, " layers, and none of the models that ",
                checkpoint.path().string(), " was made from has as many (the first has ", layers,
                "): its layers cannot be placed in it");
  }
  std::vector<int64_t> boundaries(first.begin() + 1, first.end());
  boundaries.push_back(wanted);
  return boundaries;
}

}  // namespace dynslice
