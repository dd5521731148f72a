// `train` calls LibTorch's fused AdamW by a name that LibTorch may change. These tests notice when it computes
// something else.
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <torch/optim/adamw.h>

#include <cmath>
#include <memory>
#include <vector>

#include "aten.h"
#include "dynslice/train/training.h"

namespace dynslice {
namespace {

// Gradients that do not depend on the parameters, another one each update, of sizes that differ by three orders.
class GivenGradients final : public Objective {
 public:
  GivenGradients(std::vector<at::Tensor> parameters, std::vector<std::vector<at::Tensor>> gradients)
      : parameters_(std::move(parameters)), gradients_(std::move(gradients)) {}
  int64_t examples() const override { return 1; }
  double weight(int64_t) const override { return 1; }
  int64_t tokens(int64_t) const override { return 1; }
  LossSum backward(std::span<const int64_t>, double, uint64_t) override {
    for (size_t i = 0; i < parameters_.size(); ++i) parameters_[i].mutable_grad() = gradients_[update_][i].clone();
    ++update_;
    return {1, 1};
  }
  std::optional<LossSum> validate() override { return std::nullopt; }

 private:
  std::vector<at::Tensor> parameters_;
  std::vector<std::vector<at::Tensor>> gradients_;
  size_t update_ = 0;
};

class FusedAdamW : public ::testing::Test {
 protected:
  static constexpr int64_t kUpdates = 12;

  FusedAdamW() {
    at::manual_seed(3);
    start_ = {at::randn({5, 7}), at::randn({40, 33}), at::randn({7})};
    for (int64_t update = 0; update < kUpdates; ++update) {
      std::vector<at::Tensor> gradients;
      for (const at::Tensor& start : start_) gradients.push_back(at::randn_like(start) * at::randn_like(start).exp());
      gradients_.push_back(gradients);
    }
    options_.updates = kUpdates;
    options_.batch = 1;
    options_.learning_rate = 0.02;
    options_.final_learning_rate = 0.001;
    options_.warmup = 0.3;
    options_.weight_decay = 0.1;
    options_.validations = 0;
  }

  std::vector<at::Tensor> fresh_parameters() const {
    std::vector<at::Tensor> parameters;
    for (const at::Tensor& start : start_) parameters.push_back(start.clone().requires_grad_());
    return parameters;
  }

  std::vector<at::Tensor> trained() const {
    const std::vector<at::Tensor> parameters = fresh_parameters();
    GivenGradients objective(parameters, gradients_);
    train(parameters, objective, options_, "test", no_progress());
    return parameters;
  }

  // Both compute in fp32, in another order: each update rounds by a few 2^-24 of entries below 4.
  static void expect_same(const std::vector<at::Tensor>& found, const std::vector<at::Tensor>& expected) {
    for (size_t i = 0; i < found.size(); ++i) {
      const double difference = (found[i].detach().to(at::kDouble) - expected[i].detach()).abs().max().item<double>();
      EXPECT_LT(difference, kUpdates * 4 * 1.2e-7) << "parameter " << i;
    }
  }

  std::vector<at::Tensor> start_;
  std::vector<std::vector<at::Tensor>> gradients_;
  TrainingOptions options_;
};

TEST_F(FusedAdamW, GivesWhatLibTorchsPublicOptimizerGives) {
  const std::vector<at::Tensor> parameters = fresh_parameters();
  const auto group = [](std::vector<at::Tensor> members, double decay) {
    auto options = std::make_unique<torch::optim::AdamWOptions>();
    options->weight_decay(decay);
    return torch::optim::OptimizerParamGroup(std::move(members), std::move(options));
  };
  torch::optim::AdamW optimizer({group({parameters[0], parameters[1]}, 0.1), group({parameters[2]}, 0)});
  for (int64_t update = 0; update < kUpdates; ++update) {
    for (size_t i = 0; i < parameters.size(); ++i)
      parameters[i].mutable_grad() = gradients_[static_cast<size_t>(update)][i].clone();
    for (auto& members : optimizer.param_groups()) members.options().set_lr(learning_rate_at(options_, update));
    optimizer.step();
  }
  expect_same(trained(), parameters);
}

// Algorithm 2 of arXiv 1711.05101, in fp64.
TEST_F(FusedAdamW, GivesWhatThePaperSays) {
  std::vector<at::Tensor> expected;
  for (size_t i = 0; i < start_.size(); ++i) {
    at::Tensor theta = start_[i].to(at::kDouble);
    at::Tensor first = at::zeros_like(theta), second = at::zeros_like(theta);
    for (int64_t t = 1; t <= kUpdates; ++t) {
      const at::Tensor gradient = gradients_[static_cast<size_t>(t - 1)][i].to(at::kDouble);
      const double rate = learning_rate_at(options_, t - 1);
      first = 0.9 * first + 0.1 * gradient;
      second = 0.999 * second + 0.001 * gradient.square();
      const at::Tensor first_unbiased = first / (1 - std::pow(0.9, t)),
                       second_unbiased = second / (1 - std::pow(0.999, t));
      const double decay = theta.dim() > 1 ? options_.weight_decay : 0;
      theta = theta * (1 - rate * decay) - rate * first_unbiased / (second_unbiased.sqrt() + 1e-8);
    }
    expected.push_back(theta);
  }
  expect_same(trained(), expected);
}

}  // namespace
}  // namespace dynslice
