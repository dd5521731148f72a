#include "dynslice/jobs/models.h"

#include <array>
#include <string>
#include <vector>

#include "cli/show/outcome.h"
#include "cli/verbs/verbs.h"

namespace dynslice::cli {
namespace {

// One column of the table, on the terminal and in docs/models.md.
struct Column {
  const char* title;
  const char* meaning;
  std::string (*cell)(const SupportedModel& model);
};

std::string name_or_no(const std::string& name) { return name.empty() ? "no" : name; }
std::string yes_or_no(bool value) { return value ? "yes" : "no"; }

const std::array kColumns = {
    Column{"model_type", "as config.json names it", [](const SupportedModel& model) { return model.model_type; }},
    Column{"transformers", "the class that loads ordinary results",
           [](const SupportedModel& model) { return model.class_name; }},
    Column{"GGUF", "the architecture of GGUF files that are read and exported, which llama.cpp runs; no: it does not",
           [](const SupportedModel& model) { return name_or_no(model.gguf); }},
    Column{"GGUF, unequal", "the same where layers differ in size; no: such results have no GGUF form",
           [](const SupportedModel& model) { return name_or_no(model.gguf_of_unequal_layers); }},
    Column{"slice", "whether slice cuts the stream; --method modular takes all",
           [](const SupportedModel& model) { return yes_or_no(model.cuts_stream); }},
    Column{"heads", "whether slice --method modular removes heads as well as neurons",
           [](const SupportedModel& model) { return yes_or_no(model.removes_heads); }},
    Column{"linear", "whether depth streamline takes --replace linear and linear-stream; the others serve all",
           [](const SupportedModel& model) { return yes_or_no(model.folds_maps); }},
};

constexpr const char* kRest =
    "score, plan, slice --method modular, depth, heal, quantize, eval, compare, bench, generate, inspect and export "
    "take all of them.";

std::vector<std::string> titles() {
  std::vector<std::string> titles;
  for (const Column& column : kColumns) titles.emplace_back(column.title);
  return titles;
}

std::vector<std::string> cells_of(const SupportedModel& model) {
  std::vector<std::string> cells;
  for (const Column& column : kColumns) cells.push_back(column.cell(model));
  return cells;
}

void print_models(std::ostream& out, const ModelsResult& result) {
  std::vector<std::vector<std::string>> rows;
  for (const SupportedModel& model : result.models) rows.push_back(cells_of(model));
  print_table(out, titles(), rows);
  out << '\n';
  for (const Column& column : kColumns) out << column.title << ": " << column.meaning << ".\n";
  out << kRest << '\n';
}

void print_row(std::ostream& out, const std::vector<std::string>& cells) {
  out << '|';
  for (const std::string& cell : cells) out << ' ' << cell << " |";
  out << '\n';
}

void print_page(std::ostream& out, const ModelsResult& result) {
  out << "# Models\n\nMade from the program's own table by `dynslice models --markdown`; `tools/update_docs.sh` writes "
         "it.\n\n";
  print_row(out, titles());
  print_row(out, std::vector<std::string>(kColumns.size(), "---"));
  for (const SupportedModel& model : result.models) print_row(out, cells_of(model));
  out << '\n';
  for (const Column& column : kColumns) out << "- **" << column.title << "**: " << column.meaning << ".\n";
  out << '\n'
      << kRest
      << "\n\nResults with sliced or unequal shapes load in transformers with the modeling code that lies "
         "beside them, and in dynslice. `docs/adding-a-model.md` tells how a row is added.\n";
}

}  // namespace

void run(const ModelsRequest& request, TerminalProgress& progress, std::ostream& out) {
  present(out, dynslice::run(request, progress), request.common,
          [&](const ModelsResult& result) { request.markdown ? print_page(out, result) : print_models(out, result); });
}

}  // namespace dynslice::cli
