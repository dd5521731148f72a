// The journal of a command: where it lies, what decides the job, and what a person is told when it ends early.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/support/fault_point.h"
#include "dynslice/walk/journal.h"

namespace dynslice {

// Everything that decides the result of a command: its options, the model's files, the text, device, dtype, threads
// and versions. `text` may be null.
[[nodiscard]] OrderedJson fingerprint(const CommonOptions& common, const ComputeOptions& compute,
                                      const Checkpoint& checkpoint, const LoadedText* text,
                                      const TextOptions& text_options);
// Adds size and time of the files of a model: "NAME file model.safetensors".
void add_model_files(OrderedJson& fingerprint, const std::string& name, const Checkpoint& checkpoint);
// Adds the content of a file that an option names, when it names one.
void add_file(OrderedJson& fingerprint, const std::string& option, const std::string& file);

// What $DYNSLICE_STOP_AFTER asks for, for tests: [PHASE:]N[:MOMENT][:SIGNAL]..., the N-th save, from 1 on, of every
// journal, or its N-th save of PHASE ("slicing"); MOMENT is data, state or saved (the default); SIGNAL is KILL (the
// default), INT or TERM, and several are raised one after the other. `compare`, which has no journal, counts the
// measurements that it keeps, as phase "measuring". Throws kUsage for anything else.
FaultPoint fault_point();

// What --resume, --force, $DYNSLICE_STOP_AFTER and $DYNSLICE_JOURNAL (auto, every, off) ask for. Throws kUsage for
// another value of these variables.
JournalOptions journal_options(const CommonOptions& common);

// The journal of a command that writes `output` (a file; empty: nothing): in OUTPUT.partial, else in the cache folder
// under a name made of the fingerprint. `run_description` is kept for the run that goes on.
std::unique_ptr<Journal> open_journal(const CommonOptions& common, const std::string& output,
                                      const OrderedJson& fingerprint, const OrderedJson& run_description);

// Does the work. When it ends early, what is worth keeping is kept, and the error says how to go on.
void with_journal(Journal& journal, const CommonOptions& common, const std::function<void()>& work);

// The words as one types them in a shell.
std::string shell_line(const std::vector<std::string>& words);

// What to type to go on with a command that was stopped: with the recipe, for a step of one.
std::string resuming_command(const CommonOptions& common);

// The command line without what does not belong to the job: --resume and, unless `all_options`, --force, --json, -q,
// -v, --log-file.
std::vector<std::string> job_command_line(const std::vector<std::string>& command_line, bool all_options);

}  // namespace dynslice
