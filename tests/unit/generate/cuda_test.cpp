// Sampling and writing on a CUDA device.
#include <gtest/gtest.h>

#include "dynslice/generate/generate.h"
#include "test_device.h"
#include "tiny_model.h"

namespace dynslice {
namespace {

// No text at all: the ids are what counts here.
class SilentTokenizer final : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view, bool) const override { return {}; }
  std::string decode(std::span<const int32_t>, bool) const override { return ""; }
  int64_t vocab_size() const override { return 61; }
  std::optional<int32_t> bos_id() const override { return std::nullopt; }
  std::optional<int32_t> eos_id() const override { return std::nullopt; }
  bool adds_bos() const override { return false; }
};

class CudaGenerate : public testing::OnDevice {};

TEST_F(CudaGenerate, WritesWhatTheCpuWrites) {
  const auto checkpoint = testing::tiny_model();
  const std::vector<int32_t> prompt = {3, 1, 4, 1, 5, 9, 2, 6};
  const auto write = [&](at::Device device, const SamplingOptions& sampling) {
    const ResidentModel model(checkpoint, {.device = device, .chunk_tokens = 3}, no_progress());
    return generate(
               model, SilentTokenizer(), prompt, {.sampling = sampling, .max_tokens = 20}, [](std::string_view) {},
               no_progress())
        .ids;
  };
  EXPECT_EQ(write(device_, {}), write(at::kCPU, {}));
  const SamplingOptions sampling{.temperature = 1, .top_k = 20, .top_p = 0.9, .seed = 4};
  EXPECT_EQ(write(device_, sampling), write(at::kCPU, sampling));
}

}  // namespace
}  // namespace dynslice
