#include "dynslice/train/training.h"

#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "aten.h"
#include "dynslice/train/objectives.h"
#include "tiny_model.h"
#include "unit/support/error_matchers.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

using testing::expect_error;
using testing::random_windows;
using testing::tiny_model;

// ‖W x - y‖² of examples whose W is known.
class Regression final : public Objective {
 public:
  explicit Regression(at::Tensor weight) : weight_(std::move(weight)) {
    at::manual_seed(11);
    inputs_ = at::randn({64, 6});
    truth_ = at::randn({4, 6});
    targets_ = inputs_.matmul(truth_.t());
  }
  int64_t examples() const override { return 48; }
  double weight(int64_t) const override { return 1; }
  int64_t tokens(int64_t) const override { return 1; }
  LossSum backward(std::span<const int64_t> examples, double scale, uint64_t) override {
    const c10::AutoGradMode with_gradients(true);
    const at::Tensor rows = at::tensor(at::ArrayRef<int64_t>(examples.data(), examples.size()));
    const at::Tensor loss = loss_of(rows);
    torch::autograd::backward({loss * scale}, {});
    return {loss.item<double>(), static_cast<double>(examples.size())};
  }
  std::optional<LossSum> validate() override { return LossSum{loss_of(at::arange(48, 64)).item<double>(), 16}; }
  const at::Tensor& truth() const { return truth_; }

 private:
  at::Tensor loss_of(const at::Tensor& rows) const {
    return (inputs_.index_select(0, rows).matmul(weight_.t()) - targets_.index_select(0, rows)).square().sum();
  }
  at::Tensor weight_, inputs_, truth_, targets_;
};

TrainingOptions some_training() {
  TrainingOptions options;
  options.updates = 400;
  options.batch = 12;
  options.micro_batch = 5;
  options.learning_rate = 0.05;
  options.final_learning_rate = 1e-4;
  return options;
}

TEST(Training, ReachesTheKnownOptimum) {
  const at::Tensor weight = at::zeros({4, 6}).requires_grad_();
  Regression objective(weight);
  const TrainingResult result = train({weight}, objective, some_training(), "test", no_progress());
  EXPECT_LT((weight.detach() - objective.truth()).abs().max().item<double>(), 1e-3);
  EXPECT_EQ(result.updates, 400);
  EXPECT_EQ(result.tokens, 400 * 12);
  EXPECT_LT(result.points.back().validation_loss, 1e-5 * result.points.front().validation_loss);
}

TEST(Training, OneUpdateIsThatOfTheTextbook) {
  const at::Tensor weight = at::full({4, 6}, 0.5).requires_grad_();
  Regression objective(weight);
  TrainingOptions options = some_training();
  options.updates = 1;
  options.batch = 48;
  options.warmup = 0;
  options.weight_decay = 0.1;
  options.validations = 0;
  train({weight}, objective, options, "test", no_progress());
  // AdamW's first step moves every entry by the rate, against the sign of its gradient, after the decay.
  const at::Tensor before = at::full({4, 6}, 0.5);
  const at::Tensor moved = weight.detach() - before * (1 - 0.05 * 0.1);
  EXPECT_LT((moved.abs() - 0.05).abs().max().item<double>(), 1e-4);
}

TEST(Training, MicroBatchesChangeNothingBeyondRounding) {
  std::vector<at::Tensor> results;
  for (const int64_t size : {1, 12}) {
    const at::Tensor weight = at::zeros({4, 6}).requires_grad_();
    Regression objective(weight);
    TrainingOptions options = some_training();
    options.updates = 20;
    options.micro_batch = size;
    train({weight}, objective, options, "test", no_progress());
    results.push_back(weight.detach());
  }
  EXPECT_LT((results[0] - results[1]).abs().max().item<double>(), 1e-4);
}

TEST(Training, KeepsTheBestParametersAndStopsWithPatience) {
  const at::Tensor weight = at::zeros({4, 6}).requires_grad_();
  Regression objective(weight);
  TrainingOptions options = some_training();
  options.learning_rate = options.final_learning_rate = 50;  // every update makes it worse
  options.validations = 400;
  options.patience = 3;
  const TrainingResult result = train({weight}, objective, options, "test", no_progress());
  EXPECT_TRUE(result.stopped_early);
  EXPECT_EQ(result.updates, 3);
  EXPECT_EQ(result.best_update, 0);
  EXPECT_EQ(weight.detach().abs().max().item<double>(), 0);
}

TEST(Training, ARunThatWasStoppedGoesOnToTheSameBits) {
  const testing::TemporaryFolder folder;
  // An objective that stops at its 30th pass.
  class Stopping final : public Objective {
   public:
    Stopping(Regression& inner, int64_t left) : inner_(inner), left_(left) {}
    int64_t examples() const override { return inner_.examples(); }
    double weight(int64_t e) const override { return inner_.weight(e); }
    int64_t tokens(int64_t e) const override { return inner_.tokens(e); }
    LossSum backward(std::span<const int64_t> examples, double scale, uint64_t seed) override {
      if (left_-- == 0) throw Error(ErrorKind::kInterrupted, "stop");
      return inner_.backward(examples, scale, seed);
    }
    std::optional<LossSum> validate() override { return inner_.validate(); }

   private:
    Regression& inner_;
    int64_t left_;
  };
  TrainingOptions options = some_training();
  options.updates = 40;
  const at::Tensor whole = at::zeros({4, 6}).requires_grad_();
  Regression objective(whole);
  const TrainingResult expected = train({whole}, objective, options, "test", no_progress());

  const auto run = [&](int64_t passes, bool resume) {
    const at::Tensor weight = at::zeros({4, 6}).requires_grad_();
    Regression inner(weight);
    Stopping stopping(inner, passes);
    Journal journal(std::make_shared<WorkFolder>(folder / "out.partial"), {{"seed", 0}}, {},
                    {resume, false, JournalPace::kEvery});
    const TrainingResult result =
        train({weight}, stopping, options, "test", no_progress(), JournalPhase(journal, "training"));
    return std::pair{weight.detach(), result};
  };
  EXPECT_THROW(run(30, false), Error);
  const auto [weight, result] = run(1000, true);
  EXPECT_TRUE(at::equal(weight, whole.detach()));
  EXPECT_EQ(to_json(result).dump(), to_json(expected).dump());
}

TEST(Training, TheRateRisesAndThenFollowsACosine) {
  TrainingOptions options;
  options.updates = 101;
  options.warmup = 0.1;  // 11 updates
  options.learning_rate = 1;
  options.final_learning_rate = 0.2;
  EXPECT_NEAR(learning_rate_at(options, 0), 1.0 / 11, 1e-12);
  EXPECT_NEAR(learning_rate_at(options, 10), 1, 1e-12);
  EXPECT_NEAR(learning_rate_at(options, 11), 1, 1e-12);
  EXPECT_NEAR(learning_rate_at(options, 100), 0.2, 1e-12);
  EXPECT_NEAR(learning_rate_at(options, 11) + learning_rate_at(options, 100), 1.2, 1e-12);
  for (int64_t update = 12; update <= 100; ++update)
    EXPECT_LT(learning_rate_at(options, update), learning_rate_at(options, update - 1));
}

TEST(Training, RefusesWhatCannotBeTrained) {
  TrainingOptions options;
  options.learning_rate = 1e-5;
  options.final_learning_rate = 1e-4;
  expect_error(ErrorKind::kUsage, {"--final-learning-rate"}, [&] { check_training(options, 4); });
  expect_error(ErrorKind::kUsage, {"nothing to train on"}, [&] { check_training({}, 0); });
}

TEST(Training, SaysSoWhenTheLossIsNoLongerANumber) {
  const at::Tensor weight = at::full({4, 6}, NAN).requires_grad_();
  Regression objective(weight);
  expect_error(ErrorKind::kBadInput, {"no longer a number", "--learning-rate"},
               [&] { train({weight}, objective, some_training(), "test", no_progress()); });
}

// ---- Objectives

class LanguageModelLoss : public ::testing::Test {
 protected:
  LanguageModelLoss() {
    layers_.config = &model_.config();
    for (int64_t i = 0; i < 3; ++i) layers_.layers.push_back(load_decoder_layer(model_, i, at::kFloat, at::kCPU));
    parameters_ = make_trainable(layers_.layers[1]);
    layers_.first_trainable = 1;
  }

  LanguageModelObjective objective(std::vector<TrainingExample> examples) {
    const auto entry = [this, examples](std::span<const int64_t> some, bool, int64_t length) {
      std::vector<at::Tensor> rows;
      for (const int64_t e : some) {
        std::vector<int64_t> ids(static_cast<size_t>(length), 0);
        std::copy(examples[static_cast<size_t>(e)].ids.begin(), examples[static_cast<size_t>(e)].ids.end(),
                  ids.begin());
        rows.push_back(model_.at("model.embed_tokens.weight").index_select(0, at::tensor(ids)).unsqueeze(0));
      }
      return at::cat(rows);
    };
    return {layers_, head_, entry, examples, examples, 2};
  }

  std::vector<at::Tensor> gradients(LanguageModelObjective& objective, const std::vector<int64_t>& examples) {
    for (const at::Tensor& parameter : parameters_) parameter.mutable_grad().reset();
    objective.backward(examples, 0.01, 0);
    std::vector<at::Tensor> result;
    for (const at::Tensor& parameter : parameters_) result.push_back(parameter.grad().clone());
    return result;
  }

  void expect_loss_of_the_walk();
  void expect_gradients_of_differences();

  testing::MemoryCheckpoint model_ = tiny_model({.layers = 3, .tied = true});
  TokenWindows windows_ = random_windows(3, 16, 61);
  LayerWalk walk_{model_, {}, 16, no_progress()};
  Head head_ = load_head(walk_);
  TrainableLayers layers_;
  std::vector<at::Tensor> parameters_;
};

TEST_F(LanguageModelLoss, IsThatOfTheWalk) { expect_loss_of_the_walk(); }

TEST_F(LanguageModelLoss, GradientsAreThoseOfFiniteDifferences) { expect_gradients_of_differences(); }

TEST_F(LanguageModelLoss, OfCappedAndScaledLogitsIsThatOfTheWalkToo) {
  head_.logit_cap = 4;
  head_.logit_scale = 0.6;
  expect_loss_of_the_walk();
  expect_gradients_of_differences();
}

void LanguageModelLoss::expect_loss_of_the_walk() {
  ResidualStream stream = walk_.embed(windows_);
  run_dense(walk_, "test", stream);
  const double expected = next_token_losses(walk_, head_, stream, windows_, "test").mean().item<double>();
  LanguageModelObjective loss = objective(examples_of(windows_));
  EXPECT_NEAR(loss.validate()->mean(), expected, 1e-5);
  const std::vector<int64_t> all = {0, 1, 2};
  EXPECT_NEAR(loss.backward(all, 1, 0).mean(), expected, 1e-5);
}

void LanguageModelLoss::expect_gradients_of_differences() {
  LanguageModelObjective loss = objective(examples_of(windows_));
  const std::vector<at::Tensor> found = gradients(loss, {0, 1, 2});
  for (size_t i = 0; i < parameters_.size(); ++i) {
    at::Tensor parameter = parameters_[i].detach();
    const at::Tensor direction = at::randn_like(parameter);
    const double step = 2e-3;
    parameter.add_(direction, step);
    const double above = loss.validate()->loss;
    parameter.add_(direction, -2 * step);
    const double below = loss.validate()->loss;
    parameter.add_(direction, step);
    const double expected = 100 * (found[i] * direction).sum().item<double>();
    EXPECT_NEAR((above - below) / (2 * step), expected, 0.03 * std::abs(expected) + 0.2) << "parameter " << i;
  }
}

TEST_F(LanguageModelLoss, ActivationsThatAreComputedAgainGiveTheSameGradients) {
  LanguageModelObjective loss = objective(examples_of(windows_));
  layers_.recomputes = true;
  const std::vector<at::Tensor> again = gradients(loss, {0, 1});
  layers_.recomputes = false;
  const std::vector<at::Tensor> kept = gradients(loss, {0, 1});
  for (size_t i = 0; i < kept.size(); ++i) EXPECT_TRUE(at::equal(again[i], kept[i]));
}

TEST_F(LanguageModelLoss, CountsAnswersOnlyAndPaddingNever) {
  std::vector<TrainingExample> examples = examples_of(windows_);
  examples[0].ids.resize(9);
  examples[0].first_target = 6;
  LanguageModelObjective loss = objective(examples);
  EXPECT_EQ(loss.weight(0), 3);
  EXPECT_EQ(loss.tokens(0), 9);
  const std::vector<int64_t> alone = {0}, both = {0, 1}, other = {1};
  const LossSum first = loss.backward(alone, 1, 0);
  EXPECT_EQ(first.weight, 3);
  EXPECT_NEAR(loss.backward(both, 1, 0).loss, first.loss + loss.backward(other, 1, 0).loss, 1e-3);
}

TEST(StreamLoss, WeighsTokensByTheInverseSquareOfTheTarget) {
  testing::MemoryCheckpoint model = tiny_model({.layers = 1});
  TrainableLayers layer;
  layer.config = &model.config();
  layer.layers.push_back(load_decoder_layer(model, 0, at::kFloat, at::kCPU));
  make_trainable(layer.layers.front());
  at::manual_seed(5);
  const ResidualStream entered{{at::randn({2, 8, 32}), at::randn({1, 8, 32})}, nullptr, at::kCPU};
  const ResidualStream target{{at::randn({2, 8, 32}) * 3, at::randn({1, 8, 32})}, nullptr, at::kCPU};
  const at::Tensor map = at::randn({32, 32}) * 0.1;
  StreamObjective objective(layer, entered, target, 2, map, 2);
  const at::Tensor y = forward_trainable(layer.layers.front(), layer.context(8), entered.gather(), at::kFloat).detach();
  const at::Tensor error = (y.matmul(map.t()) - target.gather()).square().sum(-1) / target.gather().square().sum(-1);
  const std::vector<int64_t> both = {0, 1};
  EXPECT_EQ(objective.examples(), 2);
  EXPECT_NEAR(objective.backward(both, 1, 0).loss, error.narrow(0, 0, 2).sum().item<double>(), 1e-3);
  EXPECT_NEAR(objective.validate()->loss, error.narrow(0, 2, 1).sum().item<double>(), 1e-3);
}

}  // namespace
}  // namespace dynslice
