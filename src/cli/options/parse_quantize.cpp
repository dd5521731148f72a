#include <CLI/CLI.hpp>

#include "cli/options/choice_option.h"
#include "cli/options/common_options.h"
#include "cli/options/values.h"

namespace dynslice::cli {
namespace {

// How many layers take which bits.
void add_levels(CLI::App& verb, QuantizeRequest& options) {
  verb.add_option_function<std::string>(
          "--bits", [&options](const std::string& text) { options.bits = parse_bits("--bits", text); },
          "bits of a weight, 2 to 8: one number for all layers, or falling levels, the first for the most important "
          "layers")
      ->group(basic(Group::kHowMuch))
      ->type_name("B[,B...]")
      ->default_str("4");
  CLI::Option* shares =
      verb.add_option_function<std::string>(
              "--low-share",
              [&options](const std::string& text) { options.low_shares = parse_ratios("--low-share", text); },
              "share of the layers that takes the second level, and then the third, and so on; the least important "
              "take "
              "the lowest")
          ->group(basic(Group::kHowMuch))
          ->type_name("RATIO[,RATIO...]")
          ->default_str("as many at every level");
  verb.add_option_function<double>(
          "--avg-bits", [&options](double bits) { options.average_bits = bits; },
          "mean bits of the layers' weights, without scales: as few layers as will do take the lower of the two levels "
          "beside it")
      ->group(basic(Group::kHowMuch))
      ->check(CLI::Range(2.0, 8.0))
      ->type_name("X")
      ->excludes(shares);
}

// Which layers take them.
void add_order(CLI::App& verb, QuantizeRequest& options) {
  verb.add_option(
          "--order", options.order,
          "what says which layers are important; a metric of `dynslice score` (lim: how much a layer changes the "
          "stream, zd: its outstanding weights, which needs no text), search: the loss on more calibration text "
          "is measured with each layer lowered, which is best and takes longest, random, reverse: lim upside "
          "down, or a file of `dynslice score -o`")
      ->group(basic(Group::kWhat))
      ->type_name("lim|zd|METRIC|search|random|reverse|FILE")
      ->capture_default_str();
  verb.add_option("--search-samples", options.search_samples,
                  "windows, behind those of --samples, on which --order search measures")
      ->group(advanced(Group::kWhat))
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->capture_default_str();
  verb.add_option("--search-rounds", options.search_rounds,
                  "times that --order search measures all layers anew on its way to the average")
      ->group(advanced(Group::kWhat))
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  verb.add_option("--seed", options.seed, "of --order random")->group(advanced(Group::kWhat))->capture_default_str();
  CLI::Option* plan = verb.add_option("--plan", options.plan, "take the bits of every layer from this plan file")
                          ->group(advanced(Group::kWhat))
                          ->type_name("FILE");
  for (const char* replaced :
       {"--bits", "--low-share", "--avg-bits", "--order", "--seed", "--search-samples", "--search-rounds"})
    plan->excludes(verb.get_option(replaced));
}

void add_quantizer(CLI::App& verb, QuantizeRequest& options) {
  add_choice(verb, "--method", options.method, "")->group(basic(Group::kWhat));
  add_choice(verb, "--group-size", options.group_size, "weights of a row that share a scale")
      ->group(advanced(Group::kWhat));
  verb.add_flag("--symmetric", options.symmetric, "grids that are centred on 0, without zero points")
      ->group(advanced(Group::kWhat));
  verb.add_option("--damping", options.damping,
                  "of gptq: added to the diagonal of the inputs' second moment, in units of its mean")
      ->group(advanced(Group::kWhat))
      ->check(CLI::Range(1e-6, 10.0))
      ->type_name("X")
      ->capture_default_str();
  verb.add_flag("--natural-order", options.natural_order,
                "of gptq: round columns from the first to the last, instead of those with the largest inputs first")
      ->group(advanced(Group::kWhat));
}

// In which format the weights are written.
void add_formats(CLI::App& verb, QuantizeRequest& options) {
  add_output(verb, options.output, "FOLDER", "folder of the quantized checkpoint, or with --gguf the file",
             "./NAME-quantized-BITS");
  CLI::Option* gguf = verb.add_flag("--gguf", options.gguf,
                                    "write a GGUF file, for llama.cpp; 8 bits are Q8_0, 6 to 2 bits Q6_K to Q2_K, in "
                                    "rows that are no multiple of 256 "
                                    "weights Q8_0, Q5_1, Q5_0 and Q4_0 instead of these")
                          ->group(basic(Group::kOutput));
  verb.add_option_function<std::string>(
          "--types", [&options](const std::string& text) { options.types = CLI::detail::split(text, ','); },
          "with --gguf: ggml's types of the levels of --bits, such as q8_0,q4_1")
      ->group(advanced(Group::kOutput))
      ->type_name("TYPE[,TYPE...]")
      ->needs(gguf)
      ->excludes(verb.get_option("--plan"));
  verb.add_option("--embeddings", options.embeddings, "with --gguf: ggml's type of embedding and head")
      ->group(advanced(Group::kOutput))
      ->type_name("TYPE")
      ->default_str("as they are")
      ->needs(gguf);
  for (const char* other : {"--group-size", "--symmetric"}) gguf->excludes(verb.get_option(other));
  verb.add_flag("--fake-quant", options.fake_quant,
                "write the quantized values as ordinary weights, for runtimes that know no packed ones: as good, and "
                "no smaller")
      ->group(advanced(Group::kOutput))
      ->excludes(gguf);
  verb.add_option("--out-dtype", options.out_dtype, "number format of scales, and of the weights that stay as they are")
      ->group(advanced(Group::kOutput))
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->default_str("the source's; bf16 for quantized sources");
}

// What --sweep measures.
void add_measured(CLI::App& verb, QuantizeRequest& options, CLI::Option* sweep) {
  options.measured.samples = 8;
  verb.add_option("--ppl", options.measured.spec,
                  "text that --sweep measures on, as --calib takes it; a bare name means its test split, of c4 "
                  "validation")
      ->group(advanced(Group::kSweep))
      ->type_name("TEXT")
      ->needs(sweep)
      ->capture_default_str();
  verb.add_option_function<std::string>(
          "--ppl-range",
          [&options](const std::string& text) { options.measured.range = parse_range("--ppl-range", text); },
          "use only tokens A to B-1 of it")
      ->group(advanced(Group::kSweep))
      ->type_name("A:B")
      ->needs(sweep)
      ->default_str("all");
  verb.add_option("--ppl-samples", options.measured.samples, "its number of windows, of --seqlen tokens")
      ->group(advanced(Group::kSweep))
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->needs(sweep)
      ->capture_default_str();
  CLI::Option* tasks =
      verb.add_option("--tasks", options.tasks,
                      "with --sweep: also the accuracy of every point on these tasks of `dynslice eval --tasks`, with "
                      "commas between them")
          ->group(advanced(Group::kSweep))
          ->type_name("TASK,...")
          ->needs(sweep);
  verb.add_option("--limit", options.task_limit, "with --tasks: only the first questions of every task")
      ->group(advanced(Group::kSweep))
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->default_str("all")
      ->needs(tasks);
}

// The curve of LayerwiseQuant's paper, in the place of a checkpoint.
void add_sweep(CLI::App& verb, QuantizeRequest& options) {
  CLI::Option* sweep =
      verb.add_option(
              "--sweep", options.sweep,
              "write no checkpoint; measure perplexity with 0 to 100 % of the layers at the lower of two levels, "
              "in the orders lim, zd, random (three seeds) and reverse, into this JSON file and a picture (.svg) "
              "beside it. With gptq each layer is fitted to what it reads in the model as it is")
          ->group(advanced(Group::kSweep))
          ->type_name("FILE");
  add_measured(verb, options, sweep);
  for (const char* other : {"--plan", "--low-share", "--avg-bits", "--order", "--fake-quant", "--output"})
    sweep->excludes(verb.get_option(other));
}

}  // namespace

void define_quantize(CLI::App& app, QuantizeRequest& options) {
  CLI::App* verb = app.add_subcommand("quantize", "Fewer bits a weight, more of them in the layers that matter");
  add_model(*verb, options.common);
  add_quantizer(*verb, options);
  add_levels(*verb, options);
  add_order(*verb, options);
  add_text(*verb, options.calibration, "calib", "calibration",
           "training split, or validation if there is no training split", "32", "1024, or the model's maximum if less");
  add_formats(*verb, options);
  add_sweep(*verb, options);
  add_checkpoint_walk(*verb, options.common);
}

}  // namespace dynslice::cli
