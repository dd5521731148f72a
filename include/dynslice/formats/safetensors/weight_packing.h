// Which weights of a checkpoint are stored as packed integers, and how: what config.json's "quantization_config" says
// in compressed-tensors' format "pack-quantized", which llm-compressor writes and vLLM runs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dynslice/support/json.h"

namespace dynslice {

// Weights that are packed alike.
struct PackingGroup {
  std::string name;                  // its key in config_groups
  std::vector<std::string> targets;  // names of modules, "re:" and a regular expression, or the class "Linear"
  int bits = 4;                      // of a weight, 1 to 8
  bool symmetric = true;             // without zero points
  int64_t group_size = 0;            // consecutive weights of a row that share a scale; 0: all of the row
};

struct WeightPacking {
  std::vector<PackingGroup> groups;
  std::vector<std::string> ignored;  // modules that are not packed though a group targets them; as targets are
  std::string where;                 // file and key, for messages
};

// Throws kBadInput naming file and key for other quantization methods and formats, and for what changes more than the
// weights of linears or how they are stored: quantized activations or caches, sparsity, transforms, reordered groups.
[[nodiscard]] WeightPacking read_weight_packing(const JsonReader& quantization_config);

// The group that a module's weight is packed by; null when none is meant for it. As in compressed-tensors, a full name
// comes before regular expressions, and these before classes. Throws kBadInput for a regular expression that is none.
[[nodiscard]] const PackingGroup* packing_group_of(const WeightPacking& packing, const std::string& module);

}  // namespace dynslice
