#include "dynslice/support/json.h"

#include "dynslice/support/error.h"
#include "dynslice/support/files.h"

namespace dynslice {
namespace {

// Copying or printing a value that is nested hundreds of thousands of levels deep would overflow the stack.
void check_depth(std::string_view text, const std::string& where) {
  constexpr int kMaxDepth = 100;
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '"') in_string = !in_string;
    if (in_string && c == '\\') ++i;  // what follows, a quote perhaps, belongs to the string
    if (in_string) continue;
    if (c == '[' || c == '{') ++depth;
    if (c == ']' || c == '}') --depth;
    if (depth > kMaxDepth) {
      throw_error(ErrorKind::kBadInput, where, ": is nested more than ", kMaxDepth, " levels deep (at byte ", i, ")");
    }
  }
}

}  // namespace

Json parse_json(std::string_view text, const std::string& where) {
  check_depth(text, where);
  try {
    return Json::parse(text);
  } catch (const Json::parse_error& error) {
    throw_error(ErrorKind::kBadInput, where, ": is not valid JSON (at byte ", error.byte, ")");
  } catch (const Json::out_of_range&) {
    throw_error(ErrorKind::kBadInput, where, ": holds a number that is too large");
  }
}

Json parse_json_file(const std::filesystem::path& path) { return parse_json(read_file(path), path.string()); }

std::string to_text(const OrderedJson& json) {
  return json.dump(2, ' ', /*ensure_ascii=*/false, OrderedJson::error_handler_t::replace) + "\n";
}

JsonReader::JsonReader(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
  if (!object.is_object()) throw_error(ErrorKind::kBadInput, where_, ": must be a JSON object");
}

bool JsonReader::has(const std::string& key) const {
  const auto found = object_.find(key);
  return found != object_.end() && !found->is_null();
}

const Json& JsonReader::at(const std::string& key) const {
  if (!has(key)) throw_error(ErrorKind::kBadInput, where_, ": key \"", key, "\" is missing");
  return object_.at(key);
}

void JsonReader::fail(const std::string& key, const std::string& expected) const {
  std::string found =
      object_.contains(key) ? object_.at(key).dump(-1, ' ', true, Json::error_handler_t::replace) : "nothing";
  if (found.size() > 60) found = found.substr(0, 57) + "...";
  throw_error(ErrorKind::kBadInput, where_, ": key \"", key, "\" must be ", expected, "; found ", found);
}

int64_t JsonReader::integer(const std::string& key) const {
  const Json& value = at(key);
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX))
    fail(key, "an integer below 2^63");
  if (value.is_number_integer()) return value.get<int64_t>();
  fail(key, "an integer");
}

int64_t JsonReader::integer(const std::string& key, int64_t low, int64_t high) const {
  const int64_t value = integer(key);
  if (value < low || value > high) {
    fail(key, "an integer in [" + std::to_string(low) + ", " + std::to_string(high) + "]");
  }
  return value;
}

double JsonReader::number(const std::string& key) const {
  const Json& value = at(key);
  if (!value.is_number()) fail(key, "a number");
  return value.get<double>();
}

std::string JsonReader::string(const std::string& key) const {
  const Json& value = at(key);
  if (!value.is_string()) fail(key, "a string");
  return value.get<std::string>();
}

bool JsonReader::boolean(const std::string& key) const {
  const Json& value = at(key);
  if (!value.is_boolean()) fail(key, "true or false");
  return value.get<bool>();
}

JsonReader JsonReader::object(const std::string& key) const {
  const Json& value = at(key);
  if (!value.is_object()) fail(key, "an object");
  return JsonReader(value, where_ + ": " + key);
}

int64_t JsonReader::integer_or(const std::string& key, int64_t fallback) const {
  return has(key) ? integer(key) : fallback;
}
double JsonReader::number_or(const std::string& key, double fallback) const {
  return has(key) ? number(key) : fallback;
}
std::string JsonReader::string_or(const std::string& key, const std::string& fallback) const {
  return has(key) ? string(key) : fallback;
}
bool JsonReader::boolean_or(const std::string& key, bool fallback) const { return has(key) ? boolean(key) : fallback; }

}  // namespace dynslice
