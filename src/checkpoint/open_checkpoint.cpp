#include "dynslice/checkpoint/open_checkpoint.h"

#include <set>

#include "checkpoint/gguf_checkpoint.h"
#include "checkpoint/safetensors_checkpoint.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/support/error.h"

namespace dynslice {
namespace {

// Fails at once where a long run would fail late. A bias that the configuration does not know of would be left out of
// every sum in silence, so it is an error too; other tensors that nothing asks for (rotary_emb.inv_freq) are not.
void check_tensors(const Checkpoint& checkpoint) {
  std::set<std::string> expected_names;
  for (const OutputTensor& expected : checkpoint_tensors(checkpoint.config(), checkpoint.storage_dtype())) {
    const TensorInfo* info = checkpoint.find(expected.name);
    if (info == nullptr) throw_missing_tensor(checkpoint, expected.name);
    check_tensor_shape(checkpoint.path(), *info, expected.shape);
    expected_names.insert(expected.name);
  }
  for (const TensorInfo& info : checkpoint.tensors()) {
    if (!info.name.ends_with(".bias") || expected_names.contains(info.name)) continue;
    if (checkpoint.config().is_wrapped() && !split_layer_name(info.name)) continue;  // of another part
    throw_error(ErrorKind::kBadInput, checkpoint.path().string(), ": tensor \"", info.name,
                "\" is a bias that model_type ", checkpoint.config().model_type,
                " does not have with this configuration; the model is of another architecture");
  }
}

bool is_gguf(const std::filesystem::path& path) { return path.extension() == ".gguf"; }

// The only .gguf file of a folder; empty when there is none or more than one.
std::filesystem::path only_gguf_in(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::path found;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    if (!is_gguf(entry->path())) continue;
    if (!found.empty()) return {};
    found = entry->path();
  }
  return error ? std::filesystem::path() : found;
}

std::unique_ptr<Checkpoint> open_any(const std::filesystem::path& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    throw_error(ErrorKind::kMissingData, path.string(),
                ": does not exist; give a folder with config.json and safetensors, or a .gguf file");
  }
  if (!std::filesystem::is_directory(status)) return std::make_unique<GgufCheckpoint>(path);
  if (std::filesystem::exists(path / "config.json", error)) return std::make_unique<SafetensorsCheckpoint>(path);
  const std::filesystem::path gguf = only_gguf_in(path);
  if (!gguf.empty()) return std::make_unique<GgufCheckpoint>(gguf);
  throw_error(ErrorKind::kMissingData, path.string(),
              ": has no config.json and not exactly one .gguf file, so it is no checkpoint");
}

}  // namespace

std::unique_ptr<Checkpoint> open_checkpoint(const std::filesystem::path& path) {
  auto checkpoint = open_any(path);
  check_tensors(*checkpoint);
  return checkpoint;
}

}  // namespace dynslice
