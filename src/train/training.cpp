#include "dynslice/train/training.h"

#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <random>

#include "aten.h"
#include "dynslice/support/error.h"
#include "dynslice/support/log.h"

namespace dynslice {

// What the journal keeps of a point: [update, training loss, validation loss].
static void to_json(OrderedJson& json, const TrainingPoint& point) {
  json = {point.update, point.training_loss, point.validation_loss};
}
static void from_json(const OrderedJson& json, TrainingPoint& point) {
  json.at(0).get_to(point.update);
  json.at(1).get_to(point.training_loss);
  json.at(2).get_to(point.validation_loss);
}

namespace {

constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kEpsilon = 1e-8;

// AdamW (arXiv 1711.05101) in LibTorch's fused kernel. Matrices decay, norms and biases do not.
class AdamW {
 public:
  AdamW(const std::vector<at::Tensor>& parameters, double weight_decay)
      : parameters_(parameters), decay_(weight_decay) {
    for (const at::Tensor& parameter : parameters_) {
      first_.push_back(at::zeros_like(parameter));
      second_.push_back(at::zeros_like(parameter));
    }
  }

  std::vector<at::Tensor>& first_moments() { return first_; }
  std::vector<at::Tensor>& second_moments() { return second_; }

  void step(double learning_rate, int64_t update) {
    for (const bool matrices : {true, false}) {
      std::vector<at::Tensor> parameters, gradients, first, second, steps;
      for (size_t i = 0; i < parameters_.size(); ++i) {
        const at::Tensor& parameter = parameters_[i];
        if ((parameter.dim() > 1) != matrices || !parameter.grad().defined()) continue;
        parameters.push_back(parameter.detach());
        gradients.push_back(parameter.grad());
        first.push_back(first_[i]);
        second.push_back(second_[i]);
        steps.push_back(at::full({}, static_cast<double>(update + 1), parameter.options().requires_grad(false)));
      }
      if (parameters.empty()) continue;
      at::_fused_adamw_(parameters, gradients, first, second, {}, steps, learning_rate, kBeta1, kBeta2,
                        matrices ? decay_ : 0.0, kEpsilon, /*amsgrad=*/false, /*maximize=*/false);
    }
  }

 private:
  const std::vector<at::Tensor>& parameters_;
  const double decay_;
  std::vector<at::Tensor> first_, second_;
};

// Which example comes when: every pass over them in an order of its own.
class ExampleOrder {
 public:
  ExampleOrder(int64_t examples, uint64_t seed) : order_(static_cast<size_t>(examples)), seed_(seed) {}

  int64_t at(int64_t position) {
    const auto count = static_cast<int64_t>(order_.size());
    if (position / count != pass_) shuffle(position / count);
    return order_[static_cast<size_t>(position % count)];
  }

 private:
  void shuffle(int64_t pass) {
    pass_ = pass;
    std::iota(order_.begin(), order_.end(), 0);
    std::mt19937_64 random(seed_ + 0x9E3779B97F4A7C15U * static_cast<uint64_t>(pass + 1));
    for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random() % i]);
  }

  std::vector<int64_t> order_;
  const uint64_t seed_;
  int64_t pass_ = -1;
};

void clip_gradients(const std::vector<at::Tensor>& parameters, double largest) {
  std::vector<at::Tensor> squares;
  for (const at::Tensor& parameter : parameters) {
    if (parameter.grad().defined()) squares.push_back(parameter.grad().norm().to(at::kDouble).square());
  }
  if (squares.empty()) return;
  const double norm = std::sqrt(at::stack(squares).sum().item<double>());
  if (norm <= largest) return;
  for (const at::Tensor& parameter : parameters) {
    if (parameter.grad().defined()) parameter.grad().mul_(largest / norm);
  }
}

class Trainer {
 public:
  Trainer(const std::vector<at::Tensor>& parameters, Objective& objective, const TrainingOptions& options,
          const JournalPhase& journal)
      : parameters_(parameters),
        objective_(objective),
        options_(options),
        journal_(journal),
        optimizer_(parameters, options.weight_decay),
        order_(objective.examples(), options.seed) {
    for (const at::Tensor& parameter : parameters_) best_.push_back(parameter.detach().clone());
  }

  TrainingResult run(const std::string& task, ProgressSink& sink) {
    ProgressTask progress(sink, task, all_tokens(), "tokens");
    int64_t update = restore();
    if (update > 0) progress.skip(result_.tokens);
    if (update == 0 && options_.validations > 0) validate(0);
    for (; update < options_.updates && !result_.stopped_early; ++update) {
      make_update(update, progress);
      result_.updates = update + 1;
      if (is_validated(update + 1)) validate(update + 1);
      journal_.save(update + 1, options_.updates, state());
    }
    keep_best();
    for (const at::Tensor& parameter : parameters_) parameter.mutable_grad().reset();
    return result_;
  }

 private:
  int64_t all_tokens() {
    double mean = 0;
    for (int64_t i = 0; i < objective_.examples(); ++i) mean += static_cast<double>(objective_.tokens(i));
    mean /= static_cast<double>(objective_.examples());
    return static_cast<int64_t>(mean * static_cast<double>(options_.updates * options_.batch));
  }

  void make_update(int64_t update, ProgressTask& progress) {
    for (const at::Tensor& parameter : parameters_) parameter.mutable_grad().reset();
    std::vector<int64_t> batch;
    double weight = 0;
    for (int64_t i = 0; i < options_.batch; ++i) {
      batch.push_back(order_.at(update * options_.batch + i));
      weight += objective_.weight(batch.back());
    }
    const double scale = weight > 0 ? 1 / weight : 0;
    for (int64_t first = 0; first < options_.batch; first += options_.micro_batch) {
      const auto count = static_cast<size_t>(std::min(options_.micro_batch, options_.batch - first));
      const std::span<const int64_t> some(batch.data() + first, count);
      const uint64_t seed = options_.seed + static_cast<uint64_t>(update * options_.batch + first);
      recent_ += objective_.backward(some, scale, seed);
      int64_t tokens = 0;
      for (const int64_t example : some) tokens += objective_.tokens(example);
      result_.tokens += tokens;
      progress.note("loss " + short_number(recent_.mean()));
      progress.advance(tokens);
    }
    check(recent_.loss, update);
    if (options_.clip > 0) clip_gradients(parameters_, options_.clip);
    optimizer_.step(learning_rate_at(options_, update), update);
  }

  static std::string short_number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.4g", value);
    return text;
  }

  static void check(double loss, int64_t update) {
    if (std::isfinite(loss)) return;
    throw_error(ErrorKind::kBadInput, "the loss is no longer a number after ", update,
                " updates; lower --learning-rate, or try --dtype fp32");
  }

  bool is_validated(int64_t update) const {
    if (options_.validations <= 0) return false;
    if (update == options_.updates) return true;
    return update * options_.validations / options_.updates > (update - 1) * options_.validations / options_.updates;
  }

  void validate(int64_t update) {
    const auto loss = objective_.validate();
    if (!loss) return;
    check(loss->loss, update);
    result_.points.push_back({update, recent_.mean(), loss->mean()});
    recent_ = {};
    if (update == 0 || loss->mean() < best_loss_) {
      best_loss_ = loss->mean();
      result_.best_update = update;
      without_gain_ = 0;
      for (size_t i = 0; i < parameters_.size(); ++i) best_[i].copy_(parameters_[i].detach());
    } else if (++without_gain_ == options_.patience) {
      result_.stopped_early = update < options_.updates;
    }
    log(LogLevel::kDebug, "update " + std::to_string(update) + ": validation loss " + short_number(loss->mean()));
  }

  void keep_best() {
    if (result_.points.empty()) {
      result_.best_update = result_.updates;
      return;
    }
    for (size_t i = 0; i < parameters_.size(); ++i) parameters_[i].detach().copy_(best_[i]);
  }

  // ---- Journal

  WalkState state() {
    WalkState state;
    state.keep("tokens", result_.tokens);
    state.keep("best update", result_.best_update);
    state.keep("best loss", best_loss_);
    state.keep("without gain", without_gain_);
    state.keep("recent loss", recent_.loss);
    state.keep("recent weight", recent_.weight);
    state.keep("early", result_.stopped_early);
    state.keep("points", result_.points);
    held_.clear();
    held_.reserve(parameters_.size());
    for (size_t i = 0; i < parameters_.size(); ++i) {
      held_.push_back(parameters_[i].detach());
      const std::string number = std::to_string(i);
      state.keep("parameter " + number, held_.back());
      state.keep("first moment " + number, optimizer_.first_moments()[i]);
      state.keep("second moment " + number, optimizer_.second_moments()[i]);
      state.keep("best " + number, best_[i]);
    }
    return state;
  }

  int64_t restore() {
    WalkState kept = state();
    if (parameters_.empty()) return 0;
    const auto next = journal_.restore(kept, parameters_.front().device());
    if (!next) return 0;
    for (size_t i = 0; i < parameters_.size(); ++i) parameters_[i].detach().copy_(held_[i]);
    held_.clear();
    result_.updates = *next;
    return *next;
  }

  const std::vector<at::Tensor>& parameters_;
  Objective& objective_;
  const TrainingOptions& options_;
  const JournalPhase& journal_;
  AdamW optimizer_;
  ExampleOrder order_;
  std::vector<at::Tensor> best_;
  std::vector<at::Tensor> held_;  // the parameters, as the journal takes them
  double best_loss_ = 0;
  int64_t without_gain_ = 0;
  LossSum recent_;  // since the last validation
  TrainingResult result_;
};

}  // namespace

void check_training(const TrainingOptions& options, int64_t examples) {
  if (examples < 1) throw_error(ErrorKind::kUsage, "there is nothing to train on: give more --samples");
  if (options.updates < 0 || options.batch < 1 || options.micro_batch < 1)
    throw_error(ErrorKind::kUsage, "training needs at least one example an update");
  if (options.final_learning_rate > options.learning_rate) {
    throw_error(ErrorKind::kUsage, "--final-learning-rate ", options.final_learning_rate, ": is above --learning-rate ",
                options.learning_rate);
  }
}

double learning_rate_at(const TrainingOptions& options, int64_t update) {
  const auto all = static_cast<double>(options.updates), now = static_cast<double>(update);
  const double rising = std::ceil(options.warmup * all);
  if (now < rising) return options.learning_rate * (now + 1) / rising;
  const double share = all > rising + 1 ? (now - rising) / (all - rising - 1) : 0;
  return options.final_learning_rate +
         (options.learning_rate - options.final_learning_rate) * (1 + std::cos(std::numbers::pi * share)) / 2;
}

OrderedJson to_json(const TrainingResult& result) {
  OrderedJson json = {{"updates", result.updates},
                      {"tokens", result.tokens},
                      {"best_update", result.best_update},
                      {"stopped_early", result.stopped_early}};
  json["points"] = OrderedJson::array();
  for (const TrainingPoint& point : result.points) {
    json["points"].push_back(
        {{"update", point.update}, {"training_loss", point.training_loss}, {"validation_loss", point.validation_loss}});
  }
  return json;
}

TrainingResult train(const std::vector<at::Tensor>& parameters, Objective& objective, const TrainingOptions& options,
                     const std::string& task, ProgressSink& progress, const JournalPhase& journal) {
  check_training(options, objective.examples());
  const c10::NoGradGuard no_grad;  // the objective turns it on where it is needed
  return Trainer(parameters, objective, options, journal).run(task, progress);
}

}  // namespace dynslice
