#!/usr/bin/env python3
"""Prints the slowest tests of a run, how long each room and each file took, and what tests recorded of themselves.

usage: durations.py [--most N] JUNIT_FOLDER

Reads the JUnit files that tools/test.sh leaves in build/junit. Seconds are those of one test after another: two that ran
side by side count both. Standard library only.
"""

import argparse
import pathlib
import xml.etree.ElementTree as xml


def tests_of(folder):
    """(file, test, seconds) of every test; CTest's own file repeats the others and is left out."""
    for path in sorted(folder.glob("*.xml")):
        if path.name == "ctest.xml":
            continue
        for case in xml.parse(path).iter("testcase"):
            group = path.stem if path.stem.startswith("unit.") else case.get("classname", path.stem)
            yield group, case.get("name"), float(case.get("time", 0))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, metavar="JUNIT_FOLDER")
    parser.add_argument("--most", type=int, default=20, metavar="N", help="how many tests are printed (default: 20)")
    options = parser.parse_args()
    tests = sorted(tests_of(options.folder), key=lambda test: -test[2])
    groups = {}
    for group, _, seconds in tests:
        groups[group] = groups.get(group, 0) + seconds
    print(f"{len(tests)} tests took {sum(groups.values()):,.0f} s. The slowest:")
    for group, name, seconds in tests[: options.most]:
        print(f"{seconds:8.1f} s  {group}: {name}")
    for path in sorted(options.folder.glob("*.xml")):
        for recorded in xml.parse(path).iter("property"):
            print(f"{recorded.get('name').replace('_', ' ')}: {recorded.get('value')}")
    print("By room and file:")
    for group, seconds in sorted(groups.items(), key=lambda item: -item[1]):
        print(f"{seconds:8.1f} s  {group}")


if __name__ == "__main__":
    main()
