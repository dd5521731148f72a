// Names of what is measured in a layer, for messages.
#pragma once

#include <cstdint>
#include <string>

namespace dynslice {

inline std::string inside(int64_t layer) { return "what is inside the MLP of layer " + std::to_string(layer); }
inline std::string mixed_in(int64_t layer) { return "what attention mixes in layer " + std::to_string(layer); }

}  // namespace dynslice
