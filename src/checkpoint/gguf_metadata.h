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

// rope_freqs.weight: what the inverse frequencies of the rotary pairs are divided by. Empty when nothing divides them
// but a factor that the metadata name.
std::vector<float> gguf_rope_divisors(const ModelConfig& config);

// What llama.cpp multiplies attention's scores by in this architecture, which has no key for it.
double gguf_attention_scale(const ModelConfig& config);

}  // namespace dynslice
