// Checkpoints whose matrices are packed integers, in the layout that compressed-tensors calls "pack-quantized":
// transformers and vLLM load it, with other bits in every layer, and so does dynslice.
#pragma once

#include <string>
#include <vector>

#include "dynslice/checkpoint/checkpoint_writer.h"
#include "dynslice/model/config.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/quantize/quantize.h"
#include "dynslice/support/json.h"

namespace dynslice {

// What checkpoint_tensors gives, with the parts of a packed one in the place of every matrix of a layer:
// weight_packed [rows, words] I32, weight_scale [rows, groups], weight_zero_point [words, groups] I32 (asymmetric
// formats), weight_shape [2] I64.
[[nodiscard]] std::vector<OutputTensor> packed_tensors(const ModelConfig& config, at::ScalarType dtype,
                                                       const FormatOf& format_of);

// The "quantization_config" of config.json: one group of modules for every format.
[[nodiscard]] OrderedJson describe_packing(const ModelConfig& config, const FormatOf& format_of);

// The tensors of one matrix, or these rows of them; weight_shape of all matrices are written apart.
void write_packed(const MatrixRows& rows, CheckpointWriter& writer);
void write_packed_shapes(const ModelConfig& config, CheckpointWriter& writer);

}  // namespace dynslice
