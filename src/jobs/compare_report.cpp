// The figures of compared models as a table, as CSV, as Markdown and as JSON.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "dynslice/jobs/comparison.h"
#include "dynslice/support/format.h"

namespace dynslice {
namespace {

double scale_of(FigureKind kind) { return kind == FigureKind::kPercent ? 100 : 1; }

int digits_of(FigureKind kind) {
  switch (kind) {
    case FigureKind::kPlain:
      return 3;
    case FigureKind::kSmall:
      return 5;
    case FigureKind::kPercent:
      return 2;
    default:
      return 1;
  }
}

std::string format(FigureKind kind, double value) {
  if (kind == FigureKind::kCount) return format_count(std::llround(value));
  if (kind == FigureKind::kBytes) return format_bytes(static_cast<uint64_t>(value));
  return format_fixed(scale_of(kind) * value, digits_of(kind));
}

std::string with_sign(FigureKind kind, double value) {
  return (value >= 0 ? "+" : "") + format(kind, value + 0.0);  // a negative zero has no sign then
}

// "67.21 +43.58 [42.10, 45.01]", "23.63 ± 0.21", "112.3 M -16.5%", "901.2 ×1.11".
std::string cell_of(const Figure& figure) {
  std::string cell = format(figure.kind, figure.value);
  if (figure.difference) {
    cell += " " + with_sign(figure.kind, *figure.difference);
    if (figure.interval) {
      cell += " [" + with_sign(figure.kind, figure.interval->low) + ", " +
              with_sign(figure.kind, figure.interval->high) + "]";
    }
  } else if (figure.ratio) {
    cell += figure.kind == FigureKind::kRate ? " ×" + format_fixed(*figure.ratio, 2)
                                             : " " + format_change(1, *figure.ratio);
  } else if (figure.standard_error) {
    cell += " ± " + format(figure.kind, *figure.standard_error);
  }
  return cell;
}

const Figure* find(const std::vector<Figure>& figures, const std::string& name) {
  const auto found = std::ranges::find(figures, name, &Figure::name);
  return found == figures.end() ? nullptr : &*found;
}

// Every figure that some model has, in the order of the model that has most. Only the first lacks some.
const std::vector<Figure>& fullest(const std::vector<std::vector<Figure>>& figures) {
  return *std::ranges::max_element(figures, {}, &std::vector<Figure>::size);
}

// The shortest decimal number that is this value.
std::string exact(double value) {
  char buffer[64];
  const auto [end, error] = std::to_chars(buffer, buffer + sizeof buffer, value);
  return {buffer, end};
}

std::string exact(const std::optional<double>& value) { return value ? exact(*value) : ""; }

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

std::string markdown_field(const std::string& text) {
  std::string escaped;
  for (const char c : text) escaped += c == '|' ? std::string("\\|") : std::string(1, c);
  return escaped;
}

}  // namespace

FigureTable table_of(const Comparison& comparison, const std::vector<std::vector<Figure>>& figures) {
  FigureTable table;
  table.header.emplace_back("");
  for (const ComparedModel& model : comparison.models) table.header.push_back(model.name);
  for (const Figure& wanted : fullest(figures)) {
    table.rows.push_back({wanted.title});
    for (const std::vector<Figure>& of_model : figures) {
      const Figure* figure = find(of_model, wanted.name);
      table.rows.back().push_back(figure != nullptr ? cell_of(*figure) : "");
    }
  }
  return table;
}

std::string csv_of(const Comparison& comparison, const std::vector<std::vector<Figure>>& figures) {
  std::string text = "model,figure,value,stderr,difference,low,high,ratio\n";
  for (size_t i = 0; i < figures.size(); ++i) {
    for (const Figure& figure : figures[i]) {
      text += csv_field(comparison.models[i].typed) + "," + csv_field(figure.name) + "," + exact(figure.value) + "," +
              exact(figure.standard_error) + "," + exact(figure.difference) + "," +
              (figure.interval ? exact(figure.interval->low) + "," + exact(figure.interval->high) : ",") + "," +
              exact(figure.ratio) + "\n";
    }
  }
  return text;
}

std::string markdown_of(const FigureTable& table) {
  std::string text;
  const auto line = [&](const std::vector<std::string>& row) {
    for (const std::string& cell : row) text += "| " + markdown_field(cell) + (cell.empty() ? "" : " ");
    text += "|\n";
  };
  line(table.header);
  for (size_t i = 0; i < table.header.size(); ++i) text += i == 0 ? "|---" : "|---:";
  text += "|\n";
  for (const auto& row : table.rows) line(row);
  return text;
}

OrderedJson to_json(const Comparison& comparison, const std::vector<std::vector<Figure>>& figures) {
  OrderedJson list = OrderedJson::array();
  for (size_t i = 0; i < figures.size(); ++i) {
    const ComparedModel& model = comparison.models[i];
    OrderedJson json = {
        {"model", model.typed}, {"path", model.checkpoint->path().string()}, {"sha256", model.contents}};
    for (const Figure& figure : figures[i]) {
      OrderedJson& one = json["figures"][figure.name] = {{"value", figure.value}};
      if (figure.standard_error) one["stderr"] = *figure.standard_error;
      if (figure.difference) one["difference"] = *figure.difference;
      if (figure.interval) {
        one["low"] = figure.interval->low;
        one["high"] = figure.interval->high;
      }
      if (figure.ratio) one["ratio"] = *figure.ratio;
    }
    json["kept"] = model.kept;
    list.push_back(std::move(json));
  }
  return list;
}

}  // namespace dynslice
