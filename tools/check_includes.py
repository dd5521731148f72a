#!/usr/bin/env python3
"""Checks which room includes which: arrows point down the list below, methods do not know each other, and a header that
lies in src/ stays in its room.

usage: check_includes.py [--graph]

--graph prints the arrows between rooms and their numbers instead. Exit code: 0 clean, 1 something is not. Standard
library only.
"""

import argparse
import pathlib
import re
import sys
from collections import Counter

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

METHODS = ["score", "slice", "modular", "depth", "quantize", "heal", "evaluate", "generate"]
# From the top down. A room may include itself and what stands below it; rooms on one line do not include each other,
# but for those that DIRECT names.
LEVELS = [
    ["cli"],
    ["jobs"],
    ["report"],
    METHODS,
    ["train"],
    ["plan", "walk"],
    ["checkpoint"],
    ["model"],
    ["text"],
    ["hub"],
    ["formats"],
    ["tensor", "resources"],
    ["support"],
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# What no room of the house may include for its mathematics: text and hub are beside the models, not below them.
APART = {room: {"text", "hub"} for room in ["train", "plan", "walk", "model"]}


def sources():
    for folder in ("include/dynslice", "src"):
        for path in sorted((REPOSITORY / folder).rglob("*")):
            if path.suffix in (".cpp", ".h") and path.parent != REPOSITORY / "src":
                yield path, path.relative_to(REPOSITORY / folder).parts[0]


def includes(path):
    """(line, included file below src/ or include/dynslice/, whether it is public) of every include of our own."""
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        found = re.match(r'\s*#include "([^"]+)"', line)
        name = found.group(1) if found else ""
        is_source = path.relative_to(REPOSITORY).parts[0] == "src"
        if found and not (name == "aten.h" and is_source):  # the one header of all rooms: which functions of ATen they call
            yield number, name.removeprefix("dynslice/"), name.startswith("dynslice/")


def problems():
    for path, room in sources():
        where = path.relative_to(REPOSITORY)
        for line, name, is_public in includes(path):
            target = name.split("/")[0]
            if where.parts[0] == "include" and not is_public:
                yield f"{where}:{line}: a public header includes {name}, which is not installed"
            elif target not in LEVEL or "/" not in name:
                yield f"{where}:{line}: {name} is in no room of the list in tools/check_includes.py"
            elif target == room:
                continue
            elif LEVEL[target] < LEVEL[room]:
                yield f"{where}:{line}: {room} includes {name}, which is above it"
            elif LEVEL[target] == LEVEL[room] or target in APART.get(room, ()):
                yield f"{where}:{line}: {room} includes {name}, and may not know {target}"
            elif not is_public:
                yield f"{where}:{line}: {room} includes src/{name}, which is private to {target}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graph", action="store_true", help="print the arrows between rooms instead")
    if parser.parse_args().graph:
        arrows = Counter((room, name.split("/")[0]) for path, room in sources() for _, name, _ in includes(path))
        for (room, target), number in sorted(arrows.items(), key=lambda arrow: (LEVEL.get(arrow[0][0], 0), arrow[0])):
            if room != target:
                print(f"{room} -> {target}: {number}")
        return 0
    found = list(problems())
    print("\n".join(found) if found else "every include points down")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
