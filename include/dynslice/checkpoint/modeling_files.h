// The Python files that travel with a sliced checkpoint, so that transformers can load it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "dynslice/model/config.h"

namespace dynslice {

struct ModelingFile {
  std::string name;  // modeling_dynslice.py
  std::string_view content;
};

// configuration_dynslice.py and modeling_dynslice.py, which config.json's auto_map names. None for an ordinary model:
// transformers knows its architecture.
[[nodiscard]] std::vector<ModelingFile> modeling_files(const ModelConfig& config);

}  // namespace dynslice
