// Reading JSON that nobody vouches for: every access names the file and the key when it fails.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace dynslice {

using Json = nlohmann::json;
// Keeps the order of keys; for what people read.
using OrderedJson = nlohmann::ordered_json;

// Parses a JSON file. Throws kBadInput with file and byte position when it is not JSON, is nested more than 100
// levels deep, or holds a number that no double can.
Json parse_json_file(const std::filesystem::path& path);
// The same for text; `where` names it in messages.
Json parse_json(std::string_view text, const std::string& where);

// Indented text with a newline at the end. Bytes that are not UTF-8 (a path may have them) become U+FFFD.
std::string to_text(const OrderedJson& json);

// A JSON object together with the name it has in messages ("/models/x/config.json", "... : rope_scaling").
// Every getter throws kBadInput: "WHERE: key "hidden_size" is missing" or "... must be an integer, found "many"".
class JsonReader {
 public:
  JsonReader(const Json& object, std::string where);

  bool has(const std::string& key) const;  // present and not null
  int64_t integer(const std::string& key) const;
  // An integer within [low, high].
  int64_t integer(const std::string& key, int64_t low, int64_t high) const;
  double number(const std::string& key) const;
  std::string string(const std::string& key) const;
  bool boolean(const std::string& key) const;
  JsonReader object(const std::string& key) const;

  int64_t integer_or(const std::string& key, int64_t fallback) const;
  double number_or(const std::string& key, double fallback) const;
  std::string string_or(const std::string& key, const std::string& fallback) const;
  bool boolean_or(const std::string& key, bool fallback) const;

  const Json& raw() const { return object_; }
  const std::string& where() const { return where_; }
  [[noreturn]] void fail(const std::string& key, const std::string& expected) const;

 private:
  const Json& at(const std::string& key) const;

  const Json& object_;
  std::string where_;
};

}  // namespace dynslice
