// What a kept result belongs to: the contents of a model, and the program.
#include <dlfcn.h>

#include <algorithm>
#include <system_error>

#include "dynslice/evaluate/perplexity.h"
#include "dynslice/jobs/comparison.h"
#include "dynslice/support/error.h"
#include "dynslice/support/hash.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

// What decides how text becomes tokens, beside the weights.
constexpr const char* kOtherFiles[] = {"config.json",           "tokenizer.json",          "tokenizer.model",
                                       "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"};

std::vector<fs::path> files_of(const Checkpoint& checkpoint) {
  std::vector<fs::path> files = checkpoint.files();
  if (!fs::is_directory(checkpoint.path())) return files;
  for (const char* name : kOtherFiles) {
    if (fs::is_regular_file(checkpoint.path() / name)) files.push_back(checkpoint.path() / name);
  }
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  return files;
}

// Hashing a large model takes minutes: the hash of a file is kept as long as its size and time stay what they were.
std::string hash_of(const fs::path& file, const ResultCache& cache, ProgressTask& task) {
  const auto size = static_cast<int64_t>(fs::file_size(file));
  const OrderedJson fingerprint = {{"measurement", "sha256"},
                                   {"file", fs::canonical(file).string()},
                                   {"bytes", size},
                                   {"time", fs::last_write_time(file).time_since_epoch().count()}};
  if (const auto kept = cache.find(fingerprint); kept && kept->contains("sha256")) {
    task.skip(size);
    return kept->at("sha256").get<std::string>();
  }
  const std::string hash = sha256_of_file(file, [&](int64_t read) { task.advance(read); });
  constexpr int64_t kWorthKeeping = int64_t{64} << 20;
  if (size >= kWorthKeeping) cache.keep(fingerprint, {{"sha256", hash}});
  return hash;
}

}  // namespace

std::string contents_of(const Checkpoint& checkpoint, const ResultCache& cache, ProgressSink& progress) {
  const std::vector<fs::path> files = files_of(checkpoint);
  int64_t bytes = 0;
  for (const fs::path& file : files) bytes += static_cast<int64_t>(fs::file_size(file));
  ProgressTask task(progress, "Hashing " + checkpoint.path().filename().string(), bytes, "bytes");
  std::string list;
  for (const fs::path& file : files) {
    // A GGUF file is the same model under any name.
    const std::string name = files.size() > 1 ? file.filename().string() : "";
    list += name + " " + hash_of(file, cache, task) + "\n";
  }
  return sha256(list);
}

std::string program_hash() {
  Dl_info library{};
  const auto* address = reinterpret_cast<const void*>(&measure_perplexity);
  if (::dladdr(address, &library) != 0 && library.dli_fname != nullptr) {
    try {
      return sha256_of_file(library.dli_fname);
    } catch (const Error&) {
      // Replaced while it runs: the version must do.
    }
  }
  return DYNSLICE_VERSION;
}

}  // namespace dynslice
