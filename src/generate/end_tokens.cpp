#include <set>

#include "dynslice/formats/gguf/gguf_file.h"
#include "dynslice/generate/generate.h"
#include "dynslice/support/error.h"
#include "dynslice/support/json.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

// "eos_token_id" of a JSON file: an id, a list of ids, null, or not there.
void add_ids(const Json& object, const std::string& where, std::set<int32_t>& ids) {
  const JsonReader reader(object, where);
  const char* key = "eos_token_id";
  if (!reader.has(key)) return;
  const Json& value = object.at(key);
  const auto add = [&](const Json& id) {
    const int64_t number = id.is_number_integer() ? id.get<int64_t>() : INT64_MAX;
    if (number > INT32_MAX) reader.fail(key, "a token id or a list of token ids");
    if (number >= 0) ids.insert(static_cast<int32_t>(number));  // some write -1 for none
  };
  if (!value.is_array()) return add(value);
  for (const Json& id : value) add(id);
}

void add_ids(const GgufFile& file, std::set<int32_t>& ids) {
  for (const char* name : {"eos", "eot", "eom"}) {
    const std::string key = "tokenizer.ggml." + std::string(name) + "_token_id";
    if (!file.has(key)) continue;
    const int64_t id = file.integer(key);
    if (id >= 0 && id <= INT32_MAX) ids.insert(static_cast<int32_t>(id));  // converters write 2^32 - 1 for none
  }
}

}  // namespace

std::vector<int32_t> end_token_ids(const Checkpoint& checkpoint, const Tokenizer& tokenizer) {
  std::set<int32_t> ids;
  if (const auto id = tokenizer.eos_id()) ids.insert(*id);
  if (fs::is_directory(checkpoint.path())) {
    for (const char* name : {"config.json", "generation_config.json"}) {
      const fs::path file = checkpoint.path() / name;
      if (fs::exists(file)) add_ids(parse_json_file(file), file.string(), ids);
    }
  } else if (fs::exists(checkpoint.path())) {
    add_ids(GgufFile(checkpoint.path()), ids);
  }
  return {ids.begin(), ids.end()};
}

}  // namespace dynslice
