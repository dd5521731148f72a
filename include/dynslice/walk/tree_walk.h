// Takes the tokens of a prefix tree through the layers, every shared one once.
#pragma once

#include <string>

#include "dynslice/tensor/prefix_tree.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// Walks the rows of a tree through all layers: `stream`, in chunks [n, 1, width] of consecutive rows, becomes what
// leaves the last layer. Beside the stream it holds the keys and values of one sequence.
void run_tree(const LayerWalk& walk, const std::string& task, const PrefixTree& tree, ResidualStream& stream,
              const WalkSpan& span = {});

}  // namespace dynslice
