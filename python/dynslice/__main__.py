"""Becomes the program: `dynslice ...` and `python -m dynslice ...`."""

import os
import sys

from . import program


def main():
    os.execv(program, ["dynslice", *sys.argv[1:]])


if __name__ == "__main__":
    main()
