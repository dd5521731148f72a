// Files from a Hugging Face hub, kept in the cache layout of huggingface_hub so that both share downloads.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/support/progress.h"

namespace dynslice {

struct HubOptions {
  std::string endpoint;         // HF_ENDPOINT, else https://huggingface.co
  std::string token;            // HF_TOKEN, else $HF_HOME/token, else empty
  std::filesystem::path cache;  // HF_HUB_CACHE, else $HF_HOME/hub, else ~/.cache/huggingface/hub
  bool offline = false;         // HF_HUB_OFFLINE is 1, true, yes or on
  int retries = 5;              // of a transfer that broke; each goes on where the last stopped

  [[nodiscard]] static HubOptions from_environment();
};

enum class HubRepoKind { kModel, kDataset };

// "org/name" or "org/name@revision"; revision defaults to "main".
struct HubId {
  std::string repo;
  std::string revision = "main";
};

// Empty when `text` is not of the form org/name[@revision] (characters A-Z a-z 0-9 . _ -, no "..").
[[nodiscard]] std::optional<HubId> parse_hub_id(const std::string& text);

// The path of one file of a repository in the cache, downloaded when it is not there. Downloads go to a
// .incomplete file beside the blob, are resumed with a Range request, verified against the ETag (SHA-256 for
// LFS files, git SHA-1 for others) and the size, and renamed when they are whole.
// Throws kMissingData: not found (which file, repo, revision), no access (set HF_TOKEN), no network, offline;
// kOutOfResources: disk full; kBadInput: what came does not match its checksum.
[[nodiscard]] std::filesystem::path hub_file(const HubOptions& options, HubRepoKind kind, const HubId& id,
                                             const std::string& file, ProgressSink& progress);

// The snapshot folder with everything a model needs: config.json, the safetensors files that the index names
// (or model.safetensors), and the tokenizer files that exist.
[[nodiscard]] std::filesystem::path hub_model(const HubOptions& options, const HubId& id, ProgressSink& progress);

}  // namespace dynslice
