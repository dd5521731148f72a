// Opens a model on disk, whichever format it is in.
#pragma once

#include <filesystem>
#include <memory>

#include "dynslice/model/checkpoint.h"

namespace dynslice {

// Opens a folder with config.json and safetensors, a .gguf file, or a folder without config.json that holds exactly
// one .gguf file. Reads headers only, and checks that every tensor the configuration asks for is there in its shape.
// Throws kMissingData when there is nothing at `path`, kBadInput for what cannot be used.
[[nodiscard]] std::unique_ptr<Checkpoint> open_checkpoint(const std::filesystem::path& path);

}  // namespace dynslice
