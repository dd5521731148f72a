"""dynslice makes large language models smaller. This package holds the program; `dynslice` runs it.

The C++ library comes along: give CMake -DCMAKE_PREFIX_PATH=$(python -c 'import dynslice; print(dynslice.prefix)').
"""

import pathlib

prefix = pathlib.Path(__file__).resolve().parent
"""Holds bin/, lib/ and include/."""

program = prefix / "bin" / "dynslice"
"""The program itself, for subprocess.run."""
