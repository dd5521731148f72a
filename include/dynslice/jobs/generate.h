// Writing text with a model, as `dynslice generate` does it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "dynslice/generate/generate.h"
#include "dynslice/jobs/outcome.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/support/json.h"
#include "dynslice/support/progress.h"

namespace dynslice {

// A prompt that is longer is a mistake.
inline constexpr uint64_t kMaxPromptBytes = uint64_t{64} << 20;

struct GenerateCallbacks {
  // Reads the prompt of a request that has none, or has "-" for its file.
  std::function<std::string()> read_prompt{};
  // Gets the text piece by piece, in whole characters, while it is written. Without it the progress counts the bytes.
  std::function<void(std::string_view)> on_text{};
};

struct GenerateResult {
  std::filesystem::path model;
  bool chat = false;
  std::string prompt;  // as the model read it: with --chat, in the model's template
  std::vector<int32_t> prompt_ids;
  GenerationOptions how;
  Generation written;
  int64_t weight_bytes = 0;  // in memory
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  int threads = 0;
  PeakMemory peak;

  // Tokens a second; 0 where there are none.
  [[nodiscard]] double prefill_rate() const;
  [[nodiscard]] double decode_rate() const;
};
// As --json prints it.
[[nodiscard]] OrderedJson to_json(const GenerateResult& result);

// Throws kUsage when there is no prompt, for one that is empty or longer than the model has positions for, and for
// sampling options out of their range; kMissingData for --chat with a model that has no chat template; kOutOfResources
// when the model does not fit into memory; what reading the model and the callbacks throw.
[[nodiscard]] Outcome<GenerateResult> run(const GenerateRequest& request, ProgressSink& progress,
                                          const GenerateCallbacks& callbacks = {});

}  // namespace dynslice
