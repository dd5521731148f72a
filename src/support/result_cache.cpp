#include "dynslice/support/result_cache.h"

#include <chrono>
#include <system_error>

#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/hash.h"
#include "dynslice/support/log.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::hours kKept{24 * 90};
constexpr uint64_t kLargestResult = uint64_t{1} << 30;

std::string dump(const OrderedJson& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/true, OrderedJson::error_handler_t::replace);
}

// Of a result under its fingerprint.
std::string checksum_of(const OrderedJson& fingerprint, const OrderedJson& result) {
  return sha256(dump(fingerprint) + "\n" + dump(result));
}

// The result in the file. Throws kBadInput for a file that is no whole result of this fingerprint.
OrderedJson read_result(const fs::path& file, const OrderedJson& fingerprint) {
  const std::string text = read_file(file, kLargestResult);
  const Json json = parse_json(text, "it");
  const JsonReader reader(json, "it");
  if (reader.string("kind") != "dynslice.result") reader.fail("kind", "\"dynslice.result\"");
  const std::string checksum = reader.string("checksum");
  OrderedJson ordered = OrderedJson::parse(text);
  if (!ordered.contains("fingerprint") || !ordered.contains("result"))
    throw_error(ErrorKind::kBadInput, "a part is missing");
  if (checksum_of(ordered["fingerprint"], ordered["result"]) != checksum)
    throw_error(ErrorKind::kBadInput, "its checksum is wrong");
  if (dump(ordered["fingerprint"]) != dump(fingerprint))
    throw_error(ErrorKind::kBadInput, "it is of another measurement");
  return std::move(ordered["result"]);
}

}  // namespace

fs::path ResultCache::file_of(const OrderedJson& fingerprint) const {
  return folder_ /
         (fingerprint.at("measurement").get<std::string>() + "-" + sha256(dump(fingerprint)).substr(0, 32) + ".json");
}

std::optional<OrderedJson> ResultCache::find(const OrderedJson& fingerprint) const {
  if (!is_enabled()) return std::nullopt;
  const fs::path file = file_of(fingerprint);
  std::error_code error;
  if (!fs::exists(file, error)) return std::nullopt;
  try {
    OrderedJson result = read_result(file, fingerprint);
    fs::last_write_time(file, fs::file_time_type::clock::now(), error);  // asked for; whether that can be kept or not
    return result;
  } catch (const Error& damage) {
    log(LogLevel::kWarning, file.string() + ": this kept result is damaged (" + damage.what() + "): measuring again");
    fs::remove(file, error);
    return std::nullopt;
  }
}

void ResultCache::keep(const OrderedJson& fingerprint, const OrderedJson& result) const {
  if (!is_enabled()) return;
  const OrderedJson whole = {{"kind", "dynslice.result"},
                             {"checksum", checksum_of(fingerprint, result)},
                             {"fingerprint", fingerprint},
                             {"result", result}};
  std::error_code error;
  fs::create_directories(folder_, error);
  try {
    write_file_atomically(file_of(fingerprint), dump(whole) + "\n");
    remove_old_results();
  } catch (const Error& trouble) {
    log(LogLevel::kWarning, std::string(trouble.what()) + ": the result is not kept");
  }
}

void ResultCache::remove_old_results() const {
  std::error_code error;
  for (fs::directory_iterator entry(folder_, error), end; !error && entry != end; entry.increment(error)) {
    std::error_code ignored;
    const auto asked_for = fs::last_write_time(entry->path(), ignored);
    if (!ignored && fs::file_time_type::clock::now() - asked_for > kKept) fs::remove(entry->path(), ignored);
  }
}

}  // namespace dynslice
