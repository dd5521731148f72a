// What a GGUF file says of a model beside its tensors.
#pragma once

#include <string>
#include <vector>

#include "dynslice/formats/gguf/gguf_writer.h"
#include "dynslice/model/config.h"

namespace dynslice {

// general.architecture: Mistral goes by the name llama.
std::string gguf_architecture(const ModelConfig& config);

// Whether all layers have as many heads and an MLP of the same size.
bool has_equal_sizes(const ModelConfig& config);

// general.* and the architecture's own keys.
GgufMetadata gguf_model_metadata(const ModelConfig& config, const std::string& name, GgmlType type);

// What divides the inverse frequencies pair by pair: one vector for all contexts, or one for long and one for short
// ones.
struct RopeTensor {
  std::string name;
  std::vector<float> values;
};
inline constexpr const char* kRopeFrequencies = "rope_freqs.weight";
inline constexpr const char* kRopeFactorsLong = "rope_factors_long.weight";
inline constexpr const char* kRopeFactorsShort = "rope_factors_short.weight";
// What divides a pair that does not turn, in llama.cpp's own files.
inline constexpr float kStandingDivisor = 1e30F;
// Those of a file of this configuration; none where its metadata say it all.
std::vector<RopeTensor> gguf_rope_tensors(const ModelConfig& config);

// What llama.cpp multiplies attention's scores by in this architecture, which has no key for it.
double gguf_attention_scale(const ModelConfig& config);

}  // namespace dynslice
