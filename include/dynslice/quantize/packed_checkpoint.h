// Checkpoints whose matrices are packed integers, in the layout that compressed-tensors calls "pack-quantized":
// transformers and vLLM load it, with other bits in every layer, and so does dynslice.
#pragma once

#include <string>
#include <vector>

#include "dynslice/model/checkpoint_writer.h"
#include "dynslice/model/config.h"
#include "dynslice/quantize/quantize.h"
#include "dynslice/support/json.h"

namespace dynslice {

// What checkpoint_tensors gives, with the parts of a packed one in the place of every matrix of a layer:
// weight_packed [rows, words] I32, weight_scale [rows, groups], weight_zero_point [words, groups] I32 (asymmetric
// formats), weight_shape [2] I64.
std::vector<OutputTensor> packed_tensors(const ModelConfig& config, at::ScalarType dtype, const FormatOf& format_of);

// The "quantization_config" of config.json: one group of modules for every format.
OrderedJson describe_packing(const ModelConfig& config, const FormatOf& format_of);

// The tensors of one matrix; `module` is its whole name, "model.layers.3.self_attn.q_proj".
void write_packed(const std::string& module, const QuantizedMatrix& matrix, CheckpointWriter& writer);

}  // namespace dynslice
