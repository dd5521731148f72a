// Quantizes the matrices of all decoder layers, one layer in memory at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "dynslice/quantize/gptq.h"
#include "dynslice/quantize/quantized_matrix.h"
#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// The format of a matrix of layer `layer` with so many columns. Matrices of a layer that read the same input are
// quantized as one and so have one format.
using FormatOf = std::function<QuantFormat(int64_t layer, int64_t columns)>;

// A quantized matrix, or rows of it.
struct MatrixRows {
  int64_t layer = 0;
  std::string module;     // "self_attn.q_proj"
  int64_t first_row = 0;  // a multiple of 32
  QuantizedMatrix matrix;
};

// Receives all of them, layer by layer, in the rows' order of the checkpoint.
using MatrixSink = std::function<void(const MatrixRows& rows)>;

// Throws kUsage when a matrix of the model does not fit its format.
void check_formats(const ModelConfig& config, const FormatOf& format_of);

// Rounds to nearest, some rows of a matrix at a time; needs no text. `journal` keeps which layers are done; their
// matrices are then not handed over again.
void quantize_by_rounding(const Checkpoint& checkpoint, const FormatOf& format_of, const MatrixSink& sink,
                          ProgressSink& progress, const JournalPhase& journal = {});

// GPTQ: the text passes through the layers, quantized ones behind it, and every matrix is fitted to what it reads
// there: qkv, then o_proj behind the quantized qkv, then gate and up, then down. Matrices of 8 bits are rounded to
// nearest: nothing is left to gain. `journal` keeps the stream between layers; the matrices of the layers before are
// then not handed over again. Throws kBadInput for NaN or Inf in the stream.
void quantize_by_gptq(const LayerWalk& walk, const TokenWindows& windows, const FormatOf& format_of,
                      const GptqOptions& options, const MatrixSink& sink, const JournalPhase& journal = {});

// The matrices of a layer, in the order of the checkpoint, with their rows and columns.
struct LinearShape {
  std::string module;  // "self_attn.q_proj"
  int64_t rows = 0, columns = 0;
};
[[nodiscard]] std::vector<LinearShape> linear_shapes(const ModelConfig& config, int64_t layer);

}  // namespace dynslice
