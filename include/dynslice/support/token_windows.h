// Token ids cut into windows of one length: what text becomes before it meets a model.
#pragma once

#include <cstdint>
#include <vector>

namespace dynslice {

// ids.size() == count * length; window w is ids[w * length .. (w + 1) * length).
struct TokenWindows {
  std::vector<int32_t> ids;
  int64_t count = 0;
  int64_t length = 0;
  [[nodiscard]] int64_t tokens() const { return count * length; }
  // Windows [first, first + some).
  [[nodiscard]] TokenWindows part(int64_t first, int64_t some) const {
    const auto begin = ids.begin() + first * length;
    return {std::vector<int32_t>(begin, begin + some * length), some, length};
  }
};

}  // namespace dynslice
