// The door between the thin program and the library that does the work.
#pragma once

#include "cli/options/options.h"

// Runs one command, prints what it has to say, and returns the exit code. Never throws. C linkage is for its name;
// both sides are built together.
extern "C" int dynslice_run_command(const dynslice::cli::Command& command) noexcept;
