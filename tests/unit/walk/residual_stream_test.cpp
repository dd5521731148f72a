#include "dynslice/walk/residual_stream.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include "aten.h"
#include "dynslice/support/machine.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

constexpr int64_t kChunkBytes = 2 * 4 * 8 * 4;

class SpilledStream : public ::testing::Test {
 protected:
  // Five chunks [2, 4, 8], chunk i full of i.
  ResidualStream stream_of(const std::shared_ptr<ActivationStore>& store) {
    ResidualStream stream{{}, store};
    for (int i = 0; i < 5; ++i) {
      stream.chunks.push_back(store->empty({2, 4, 8}, at::TensorOptions().dtype(at::kFloat)));
      stream.chunks.back().fill_(i);
    }
    return stream;
  }
  std::shared_ptr<ActivationStore> store_of(int64_t chunks_in_memory) {
    return std::make_shared<ActivationStore>(static_cast<uint64_t>(chunks_in_memory * kChunkBytes), folder_.path());
  }
  static std::vector<float> first_values(const ResidualStream& stream) {
    std::vector<float> values;
    stream.visit([&](const at::Tensor& chunk) {
      EXPECT_TRUE(at::equal(chunk, chunk.flatten()[0].expand_as(chunk)));
      values.push_back(chunk.flatten()[0].item<float>());
    });
    return values;
  }

  testing::TemporaryFolder folder_;
};

TEST_F(SpilledStream, HoldsTheSameWhereverItsChunksLive) {
  for (const int64_t in_memory : {0, 2, 100}) {
    const auto store = store_of(in_memory);
    ResidualStream stream = stream_of(store);
    EXPECT_EQ(stream.tokens(), 40);
    stream.transform([](const at::Tensor& x) { return x * 2 + 1; });
    EXPECT_EQ(first_values(stream), (std::vector<float>{1, 3, 5, 7, 9}));
    EXPECT_EQ(store->bytes_in_memory(), static_cast<uint64_t>(std::min<int64_t>(in_memory, 5) * kChunkBytes));
    EXPECT_EQ(store->scratch_file_bytes() > 0, in_memory < 5);
  }
}

TEST_F(SpilledStream, MayBecomeWiderAndNarrower) {
  const auto store = store_of(1);
  ResidualStream stream = stream_of(store);
  for (const int64_t width : {2048, 3, 5000}) {
    stream.transform([&](const at::Tensor& x) { return x.narrow(2, 0, 1).expand({2, 4, width}).contiguous(); });
    EXPECT_EQ(stream.chunks[3].size(2), width);
    EXPECT_EQ(first_values(stream), (std::vector<float>{0, 1, 2, 3, 4}));
  }
}

TEST_F(SpilledStream, ThatWasCopiedKeepsItsValues) {
  ResidualStream stream = stream_of(store_of(2));
  const ResidualStream before = stream;
  stream.transform([](const at::Tensor& x) { return x + 10; });
  EXPECT_EQ(first_values(before), (std::vector<float>{0, 1, 2, 3, 4}));
  EXPECT_EQ(first_values(stream), (std::vector<float>{10, 11, 12, 13, 14}));
}

TEST_F(SpilledStream, MayHandAChunkThroughUnchanged) {
  ResidualStream stream = stream_of(store_of(2));
  stream.transform([](const at::Tensor& x) { return x; });
  EXPECT_EQ(first_values(stream), (std::vector<float>{0, 1, 2, 3, 4}));
}

TEST_F(SpilledStream, GivesItsMemoryAndItsBlocksBack) {
  const auto store = store_of(2);
  for (int i = 0; i < 3; ++i) stream_of(store);
  EXPECT_EQ(store->bytes_in_memory(), 0U);
  EXPECT_EQ(store->scratch_file_bytes(), 3 * 4096U);  // the blocks of one stream, used again
}

TEST_F(SpilledStream, CountsAsMemoryWithOneChunkAtATime) {
  constexpr int64_t kChunk = int64_t{16} << 20;
  ::mallopt(M_MMAP_THRESHOLD, 1 << 20);  // what is freed shall leave the process at once
  const auto store = store_of(0);
  ResidualStream stream{{}, store};
  const uint64_t before = current_rss_bytes();
  for (int i = 0; i < 8; ++i) stream.chunks.push_back(store->keep(at::full({1, 4, kChunk / 16}, i, at::kFloat)));
  double sum = 0;
  stream.visit([&](const at::Tensor& chunk) { sum += chunk.sum().item<double>(); });
  stream.transform([](const at::Tensor& x) { return x + 1; });
  EXPECT_EQ(sum, 28.0 * kChunk / 4);
  // Of 128 MiB of stream nothing stays; the bound leaves room for the threads that started meanwhile.
  EXPECT_LT(current_rss_bytes(), before + 2 * kChunk);
}

}  // namespace
}  // namespace dynslice
