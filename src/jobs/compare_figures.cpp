// The figures of compared models, and how each differs from the first model's.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "dynslice/evaluate/stability.h"
#include "dynslice/jobs/comparison.h"

namespace dynslice {
namespace {

// JSON has no infinity: what is too large for a double was written as null.
double number(const OrderedJson& json) {
  return json.is_null() ? std::numeric_limits<double>::infinity() : json.get<double>();
}

double minus(double a, double b) { return a - b; }

TaskOutcome outcome_of(const ComparedModel& model, const std::string& task) {
  return task_outcome_from_json(Json::parse(model.tasks.at(task).dump()), "the result of " + task);
}

// Whether both were measured on the same tokens, so that their windows are pairs.
bool has_same_tokens(const OrderedJson& a, const OrderedJson& b) { return a.at("token_ids") == b.at("token_ids"); }

// The figures of one model.
class FigureList {
 public:
  FigureList(const Comparison& comparison, size_t index)
      : comparison_(comparison), model_(comparison.models[index]), is_first_(index == 0) {}

  std::vector<Figure> make() {
    add_sizes();
    if (!model_.perplexity.is_null()) add_perplexity();
    if (!model_.divergence.is_null()) add_divergence();
    for (const TaskGroup& group : comparison_.selection.groups) add_group(group);
    for (const TaskQuestions& task : comparison_.questions) {
      if (!comparison_.selection.is_of_group(task.task.name)) add_task(task.task.name);
    }
    add_speed();
    return std::move(figures_);
  }

 private:
  const ComparedModel& first() const { return comparison_.models.front(); }

  Figure& add(const std::string& name, const std::string& title, FigureKind kind, double value) {
    figures_.push_back({name, title, kind, value, {}, {}, {}, {}});
    return figures_.back();
  }

  // The difference of means of pairs, or of what `statistic` makes of them.
  void add_interval(Figure& figure, const std::vector<double>& own, const std::vector<double>& others,
                    const std::function<double(double, double)>& statistic = minus) const {
    if (is_first_ || own.size() != others.size() || own.empty()) return;
    const CompareRequest& options = comparison_.options;
    figure.interval = paired_bootstrap(own, others, statistic, {options.resamples, options.seed});
    figure.difference = figure.interval->value;
  }

  void add_sizes() {
    const auto size = [&](const std::string& name, FigureKind kind, const auto& of) {
      Figure& figure = add(name, name, kind, of(*model_.checkpoint));
      if (!is_first_) figure.ratio = figure.value / of(*first().checkpoint);
    };
    size("parameters", FigureKind::kCount,
         [](const Checkpoint& checkpoint) { return static_cast<double>(count_cost(checkpoint.config()).parameters); });
    size("bytes", FigureKind::kBytes,
         [](const Checkpoint& checkpoint) { return static_cast<double>(stored_bytes(checkpoint)); });
  }

  void add_perplexity() {
    const OrderedJson &own = model_.perplexity, &others = first().perplexity;
    const auto losses = [](const OrderedJson& json) { return json.at("window_losses").get<std::vector<double>>(); };
    const bool paired = has_same_tokens(own, others);
    Figure& perplexity = add("perplexity", "perplexity", FigureKind::kPlain, number(own.at("value")));
    perplexity.standard_error = number(own.at("stderr"));
    if (!is_first_) perplexity.difference = perplexity.value - number(others.at("value"));
    if (paired) {
      add_interval(perplexity, losses(own), losses(others),
                   [](double a, double b) { return std::exp(a) - std::exp(b); });
    }
    Figure& bits = add("bits_per_byte", "bits per byte", FigureKind::kPlain, number(own.at("bits_per_byte")));
    if (!is_first_) bits.difference = bits.value - number(others.at("bits_per_byte"));
    const double bytes = number(own.at("scored_bytes"));
    if (paired && bytes > 0) {
      const double scale = number(own.at("scored_tokens")) / bytes / std::numbers::ln2;
      add_interval(bits, losses(own), losses(others), [scale](double a, double b) { return scale * (a - b); });
    }
  }

  void add_divergence() {
    const OrderedJson& kl = model_.divergence.at("kl");
    Figure& mean = add("kl", "KL divergence", FigureKind::kSmall, number(kl.at("mean")));
    mean.standard_error = number(kl.at("stderr"));
    add("kl_median", "KL divergence, median", FigureKind::kSmall, number(kl.at("median")));
    add("kl_p99", "KL divergence, 99 %", FigureKind::kSmall, number(kl.at("quantiles").at("p99")));
    const OrderedJson& same = model_.divergence.at("same_top");
    add("same_top", "same top token, %", FigureKind::kPercent, number(same.at("value"))).standard_error =
        number(same.at("stderr"));
  }

  // An accuracy and its difference, question by question.
  void add_accuracy(const std::string& task, const std::string& name, const Measure& measure,
                    const std::vector<double>& own, const std::vector<double>& others) {
    Figure& figure = add("tasks." + task + "." + name, task + " " + name + ", %", FigureKind::kPercent, measure.value);
    figure.standard_error = measure.stderr_;
    add_interval(figure, own, others);
  }

  void add_accuracies(const std::string& task, const TaskFigures& figures, const std::vector<TaskOutcome>& own,
                      const std::vector<TaskOutcome>& others) {
    const auto answers = [](const std::vector<TaskOutcome>& outcomes, bool QuestionOutcome::* right) {
      std::vector<double> values;
      for (const TaskOutcome& outcome : outcomes) {
        for (const QuestionOutcome& question : outcome.questions) values.push_back(question.*right ? 1 : 0);
      }
      return values;
    };
    add_accuracy(task, "acc", figures.acc, answers(own, &QuestionOutcome::is_right),
                 answers(others, &QuestionOutcome::is_right));
    if (figures.acc_norm) {
      add_accuracy(task, "acc_norm", *figures.acc_norm, answers(own, &QuestionOutcome::is_right_norm),
                   answers(others, &QuestionOutcome::is_right_norm));
    }
  }

  void add_group(const TaskGroup& group) {
    std::vector<TaskOutcome> own, others;
    for (const std::string& member : group.members) {
      if (!model_.tasks.contains(member)) continue;  // a group within the group: its members are listed too
      own.push_back(outcome_of(model_, member));
      others.push_back(outcome_of(first(), member));
    }
    add_accuracies(group.name, figures_of(group, own), own, others);
  }

  void add_task(const std::string& task) {
    const std::vector<TaskOutcome> own{outcome_of(model_, task)}, others{outcome_of(first(), task)};
    const TaskFigures figures = figures_of(own.front());
    add_accuracies(task, figures, own, others);
    if (figures.perplexity) {
      const auto losses = [](const TaskOutcome& outcome) {
        std::vector<double> values;
        for (const QuestionOutcome& question : outcome.questions) values.push_back(-question.log_likelihoods.front());
        return values;
      };
      Figure& figure =
          add("tasks." + task + ".perplexity", task + " perplexity", FigureKind::kPlain, figures.perplexity->value);
      figure.standard_error = figures.perplexity->stderr_;
      add_interval(figure, losses(own.front()), losses(others.front()),
                   [](double a, double b) { return std::exp(a) - std::exp(b); });
    }
    if (is_first_) return;
    const Stability stability = compare_outcomes(others.front(), own.front());
    add("tasks." + task + ".agreement", task + " agreement, %", FigureKind::kPercent, stability.agreement);
    add("tasks." + task + ".stability", task + " stability, %", FigureKind::kPercent, stability.value);
  }

  // The first model's are those beside which the second one was measured.
  void add_speed() {
    const OrderedJson& speed = is_first_ && comparison_.models.size() > 1 ? comparison_.models[1].speed : model_.speed;
    if (speed.is_null()) return;
    for (const auto& [key, title] : {std::pair{"prefill_tokens_per_second", "prefill, tokens/s"},
                                     std::pair{"decode_tokens_per_second", "decode, tokens/s"}}) {
      const double beside = number(speed.at("first").at(key));
      const double value = is_first_ ? beside : number(speed.at("model").at(key));
      if (value == 0) continue;  // no tokens were decoded
      Figure& figure = add(key, title, FigureKind::kRate, value);
      if (!is_first_) figure.ratio = value / beside;
    }
  }

  const Comparison& comparison_;
  const ComparedModel& model_;
  bool is_first_;
  std::vector<Figure> figures_;
};

}  // namespace

std::vector<std::vector<Figure>> figures_of(const Comparison& comparison) {
  std::vector<std::vector<Figure>> all;
  for (size_t index = 0; index < comparison.models.size(); ++index) all.push_back(FigureList(comparison, index).make());
  return all;
}

}  // namespace dynslice
