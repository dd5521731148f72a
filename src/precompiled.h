// What most units include, parsed once for all (CMakeLists.txt): ATen alone takes longer to parse than most units to
// compile. No unit may lean on it: each includes what it uses, and a build with -DDYNSLICE_PRECOMPILED_HEADERS=OFF
// proves it.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "aten.h"
