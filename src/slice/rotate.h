// What changes of basis make of linears and of embedding and head.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "dynslice/model/decoder_layer.h"
#include "dynslice/slice/slice.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// fp32 weight [out, d] → weight basis [out, D]: the linear then reads the sliced stream. basis [d, D].
void rotate_input(Linear& linear, const at::Tensor& basis);

// fp32 weight [d, in] → basisᵀ weight, and the bias with it: the linear then writes in the coordinates of the basis.
void rotate_output(Linear& linear, const at::Tensor& basis);

// Writes `source` [vocab, d] of the walk's checkpoint with `column_scale` [d] on its columns, times `basis` [d, D]
// (each of them unless undefined), in blocks of rows.
void write_rotated_rows(const LayerWalk& walk, const TensorSink& sink, const std::string& name,
                        const std::string& source, const at::Tensor& basis, const at::Tensor& column_scale);

}  // namespace dynslice
