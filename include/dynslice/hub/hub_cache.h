// The cache layout of huggingface_hub, of one repository:
//   models--org--name/{blobs/ETAG, refs/REVISION (holds the commit), snapshots/COMMIT/FILE -> ../../blobs/ETAG}
// and .locks/models--org--name/ETAG.lock beside it.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dynslice/hub/hub.h"
#include "dynslice/support/file.h"

namespace dynslice {

// Whether `name` can be joined to a folder without leaving it: relative, of plain components, no "..", no
// backslash, no control characters.
[[nodiscard]] bool is_safe_relative_path(std::string_view name);

// 40 lower-case hexadecimal digits.
[[nodiscard]] bool is_commit_hash(std::string_view text);

class HubRepoCache {
 public:
  HubRepoCache(std::filesystem::path cache, HubRepoKind kind, const std::string& repo);

  [[nodiscard]] std::filesystem::path blob(const std::string& etag) const { return folder_ / "blobs" / etag; }
  [[nodiscard]] std::filesystem::path incomplete_blob(const std::string& etag) const {
    return folder_ / "blobs" / (etag + ".incomplete");
  }
  [[nodiscard]] std::filesystem::path snapshot(const std::string& commit) const {
    return folder_ / "snapshots" / commit;
  }
  [[nodiscard]] std::filesystem::path lock_file(const std::string& etag) const;

  // The commit that `revision` stood for when it was last downloaded; a commit hash stands for itself.
  [[nodiscard]] std::optional<std::string> commit_of(const std::string& revision) const;
  void remember_commit(const std::string& revision, const std::string& commit) const;

  // The file of a snapshot if it is there (its link leads to a blob).
  [[nodiscard]] std::optional<std::filesystem::path> find(const std::string& commit, const std::string& file) const;
  // The files of a snapshot that are there, as "sub/name", sorted.
  [[nodiscard]] std::vector<std::string> files(const std::string& commit) const;
  // Makes the blob appear as the snapshot's `file`; returns that path.
  [[nodiscard]] std::filesystem::path link(const std::string& commit, const std::string& file,
                                           const std::string& etag) const;

 private:
  std::filesystem::path cache_;
  std::string name_;  // models--org--name
  std::filesystem::path folder_;
};

// Holds the lock that huggingface_hub takes too while it downloads a blob; waits for it, interruptibly.
class HubLock {
 public:
  // `what` names the file in the notice that another process holds the lock.
  HubLock(const std::filesystem::path& path, const std::string& what);

 private:
  File file_;
};

// Creates the folder and its parents; throws kMissingData or kOutOfResources (disk full) naming it.
void make_folder(const std::filesystem::path& folder);

}  // namespace dynslice
