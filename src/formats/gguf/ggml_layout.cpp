#include "formats/gguf/ggml_layout.h"

#include <string>

#include "dynslice/support/check.h"

namespace dynslice::ggml {

const Layout& layout_of(GgmlType type) {
  static constexpr Layout kQ4_0{{32, 32, 16}, 8, false, 0, 0, 9.0F, 6.0F};
  static constexpr Layout kQ4_1{{32, 32, 16}, 0, true, 0, 0, 16.0F, 11.0F};
  static constexpr Layout kQ5_0{{32, 32, 32}, 16, false, 0, 0, 17.0F, 12.0F};
  static constexpr Layout kQ5_1{{32, 32, 32}, 0, true, 0, 0, 32.0F, 24.0F};
  // The code of -128 is not used: ggml never writes it.
  static constexpr Layout kQ8_0{{32, 32, 255}, 127, false, 0, 0, 127.4F, 112.0F};
  static constexpr Layout kQ2_K{{256, 16, 4}, 0, true, 0, 15, 3.8F, 1.6F};
  static constexpr Layout kQ3_K{{256, 16, 8}, 4, false, -32, 31, 4.7F, 2.4F};
  static constexpr Layout kQ4_K{{256, 32, 16}, 0, true, 0, 63, 16.0F, 11.0F};
  static constexpr Layout kQ5_K{{256, 32, 32}, 0, true, 0, 63, 32.0F, 24.0F};
  static constexpr Layout kQ6_K{{256, 16, 64}, 32, false, -128, 127, 33.0F, 25.0F};
  switch (type) {
    case GgmlType::kQ4_0:
      return kQ4_0;
    case GgmlType::kQ4_1:
      return kQ4_1;
    case GgmlType::kQ5_0:
      return kQ5_0;
    case GgmlType::kQ5_1:
      return kQ5_1;
    case GgmlType::kQ8_0:
      return kQ8_0;
    case GgmlType::kQ2_K:
      return kQ2_K;
    case GgmlType::kQ3_K:
      return kQ3_K;
    case GgmlType::kQ4_K:
      return kQ4_K;
    case GgmlType::kQ5_K:
      return kQ5_K;
    case GgmlType::kQ6_K:
      return kQ6_K;
    case GgmlType::kF32:
    case GgmlType::kF16:
    case GgmlType::kBF16:
      break;
  }
  throw_broken_invariant(ggml_format(type).name, " has no codes");
}

}  // namespace dynslice::ggml
