#include "dynslice/support/progress.h"

#include <gtest/gtest.h>

namespace dynslice {
namespace {

class CountingSink final : public ProgressSink {
 public:
  void start(const std::string&, int64_t total, const std::string&) override { left = total; }
  void advance(int64_t amount) override { left -= amount; }
  void finish() override {}
  int64_t left = 0;
};

TEST(ProgressTask, AdvanceToAddsWhatThePartsOfAStepLack) {
  CountingSink sink;
  ProgressTask task(sink, "Compressing", 300, "tokens");
  task.skip(100);
  task.advance(60);
  task.advance_to(200);
  EXPECT_EQ(sink.left, 100);
  task.advance(100);
  task.advance_to(300);
  EXPECT_EQ(sink.left, 0);
}

TEST(ProgressTask, AdvanceToNeverGoesBack) {
  CountingSink sink;
  ProgressTask task(sink, "Compressing", 300, "tokens");
  task.advance(120);
  task.advance_to(100);
  EXPECT_EQ(sink.left, 180);
}

}  // namespace
}  // namespace dynslice
