#include "cli/options/common_options.h"

#include <CLI/CLI.hpp>

#include "cli/options/values.h"

namespace dynslice::cli {
namespace {

constexpr const char* kTextType =
    "wikitext2|wikitext2:test|wikitext2:validation|wikitext2:train|ptb|ptb:test|ptb:validation|ptb:train|c4|"
    "c4:validation|c4:train|FILE";

}  // namespace

void add_model(CLI::App& verb, CommonOptions& options) {
  verb.add_option("MODEL", options.model, "a checkpoint folder, a .gguf file or a hub id (org/name[@revision])")
      ->type_name("MODEL")
      ->default_str("$DYNSLICE_MODEL, else SmolLM2-135M-Instruct");
}

CLI::Option* add_output(CLI::App& verb, std::string& output, const std::string& type, const std::string& help,
                        const std::string& default_text) {
  return verb.add_option("-o,--output", output, help)
      ->group(basic(Group::kOutput))
      ->type_name(type)
      ->default_str(default_text);
}

void add_common(CLI::App& verb, CommonOptions& options, bool computes) {
  verb.add_flag("--json", options.json, "print one JSON object on standard output, everything else on standard error")
      ->group(basic(Group::kOutput));
  verb.add_flag("-q,--quiet", options.quiet, "print no progress and no notices")->group(advanced(Group::kOutput));
  verb.add_flag("-v,--verbose", options.verbose, "print messages of the debug level too")
      ->group(advanced(Group::kOutput));
  verb.add_option("--log-file", options.log_file, "append every message, with time and level, to this file")
      ->group(advanced(Group::kOutput))
      ->type_name("FILE");
  if (!computes) return;
  verb.add_option("--device", options.device, "where to compute; auto is CUDA where LibTorch sees it, else the CPU")
      ->group(basic(Group::kMachine))
      ->type_name("auto|cpu|cuda|cuda:N")
      ->default_str("auto");
  verb.add_option("--dtype", options.dtype,
                  "number format of linear layers and attention (fp16: CUDA only); auto is fp32 on the CPU and bf16 on "
                  "CUDA. The residual stream stays fp32, statistics fp64")
      ->group(advanced(Group::kMachine))
      ->type_name("auto|fp32|bf16|fp16")
      ->default_str("auto");
  verb.add_option("--threads", options.threads, "CPU threads")
      ->group(advanced(Group::kMachine))
      ->check(CLI::Range(1, 4096))
      ->default_str("all cores");
  verb.add_option("--data-dir", options.data_dir,
                  "folder in which data sets are looked for first; then $DYNSLICE_DATA_DIR, the cache and the hub")
      ->group(advanced(Group::kText))
      ->type_name("FOLDER");
}

void add_dry_run(CLI::App& verb, CommonOptions& options) {
  verb.add_flag("--dry-run", options.dry_run, "print the memory, disk and time it would take, and do nothing else")
      ->group(basic(Group::kMachine));
}

void add_memory(CLI::App& verb, CommonOptions& options) {
  verb.add_option("--max-memory", options.max_memory,
                  "most memory to take, such as 6GB: chunks and streams are made to fit, or the run is refused at once")
      ->group(advanced(Group::kMachine))
      ->type_name("SIZE")
      ->default_str("what the machine, or its container, has left");
  verb.add_option("--activation-memory", options.activation_memory,
                  "most memory for residual streams; the rest lives in a scratch file")
      ->group(advanced(Group::kMachine))
      ->type_name("SIZE")
      ->default_str("what fits");
  verb.add_option("--scratch-dir", options.scratch_dir, "folder of the scratch file")
      ->group(advanced(Group::kMachine))
      ->type_name("FOLDER")
      ->default_str("$TMPDIR, else /var/tmp");
  add_dry_run(verb, options);
}

void add_walk(CLI::App& verb, CommonOptions& options, const std::string& replaces) {
  add_memory(verb, options);
  verb.add_flag("--resume", options.resume, "go on from where a run of the same command was stopped")
      ->group(basic(Group::kMachine));
  verb.add_flag("--force", options.force, replaces + "drop what a stopped run left, and start over")
      ->group(basic(Group::kOutput));
}

void add_checkpoint_walk(CLI::App& verb, CommonOptions& options) {
  add_common(verb, options, true);
  add_walk(verb, options, "replace the output folder if dynslice wrote it; without --resume, ");
}

void add_text(CLI::App& verb, TextOptions& options, const std::string& prefix, const std::string& use,
              const std::string& split, const std::string& samples_default, const std::string& seqlen_default) {
  verb.add_option("--" + prefix, options.spec,
                  use +
                      " text: wikitext2 or ptb[:test|:validation|:train], c4[:validation|:train], or a .txt, .raw or "
                      ".jsonl file "
                      "(the \"text\" of each line); a bare name means its " +
                      split)
      ->group(basic(Group::kText))
      ->type_name(kTextType)
      ->option_text("TEXT")
      ->capture_default_str();
  const std::string range = "--" + prefix + "-range";
  verb.add_option_function<std::string>(
          range, [&options, range](const std::string& text) { options.range = parse_range(range, text); },
          "use only tokens A to B-1 of the text; either end may be left out")
      ->group(advanced(Group::kText))
      ->type_name("A:B")
      ->default_str("all");
  verb.add_option("--samples", options.samples, "number of windows that the text gives")
      ->group(basic(Group::kText))
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->default_str(samples_default);
  verb.add_option("--seqlen", options.seqlen, "tokens a window")
      ->group(basic(Group::kText))
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->default_str(seqlen_default);
  verb.add_option_function<std::string>(
          "--shuffle",
          [&options](const std::string& text) {
            options.shuffle = static_cast<uint64_t>(parse_integer("--shuffle", text));
          },
          "take windows in a random order that this seed gives, instead of the first ones")
      ->group(advanced(Group::kText))
      ->type_name("SEED");
}

void add_calibration(CLI::App& verb, TextOptions& options) {
  options.samples = 32;
  add_text(verb, options, "calib", "calibration", "training split, or validation if there is no training split", "32",
           "1024, or the model's maximum if less");
}

// What every verb that writes a checkpoint has.
void add_out_dtype(CLI::App& verb, std::string& out_dtype) {
  verb.add_option("--out-dtype", out_dtype, "number format of the written weights")
      ->group(advanced(Group::kOutput))
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->default_str("the source's; bf16 for quantized sources");
}

}  // namespace dynslice::cli
