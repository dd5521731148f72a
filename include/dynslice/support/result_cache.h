// Results of measurements that are kept from run to run, under what decides them.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "dynslice/support/json.h"

namespace dynslice {

// Guarantees: a result is found only under the fingerprint that it was kept under, key by key; what is on disk is a
// whole result or none, whenever the process is killed; nothing that is read is trusted (its checksum is compared); a
// cache that is damaged or cannot be written costs a warning and never fails the command. Results that nobody asked for
// in 90 days go when another one is kept.
class ResultCache {
 public:
  // `folder` is made with the first result; empty: nothing is kept or found.
  explicit ResultCache(std::filesystem::path folder) : folder_(std::move(folder)) {}

  [[nodiscard]] bool is_enabled() const { return !folder_.empty(); }
  // `fingerprint` has a word that names the measurement under "measurement".
  [[nodiscard]] std::optional<OrderedJson> find(const OrderedJson& fingerprint) const;
  void keep(const OrderedJson& fingerprint, const OrderedJson& result) const;

 private:
  std::filesystem::path file_of(const OrderedJson& fingerprint) const;
  void remove_old_results() const;

  std::filesystem::path folder_;
};

}  // namespace dynslice
