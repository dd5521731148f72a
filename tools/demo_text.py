#!/usr/bin/env python3
"""Turns a folder of HTML documentation into two files of plain English prose, one to calibrate on, one to evaluate on.

Writes OUTPUT_FOLDER/calibration.txt (the first half) and OUTPUT_FOLDER/evaluation.txt (the second): the paragraphs
of the pages in reading order, without markup, navigation, listings and tables. Standard library only.
"""
import argparse
import pathlib
import re
import sys
from html.parser import HTMLParser

PARAGRAPHS = {"p", "dd", "li"}
PARAGRAPH_CLASSES = {"para"}  # DocBook's <div class="para">
UNWANTED = {"head", "script", "style", "pre", "table", "nav", "footer", "header"}
UNWANTED_CLASSES = {"docnav", "toc", "navheader", "navfooter", "related", "sphinxsidebar", "indexterm"}
UNWANTED_IDS = {"banner", "title"}
VOID = {"br", "hr", "img", "link", "meta", "input", "col", "area", "base", "embed", "source", "wbr"}
FEWEST_WORDS = 12  # shorter ones are captions, menu entries and remains of lists


class Prose(HTMLParser):
    """Collects the text of paragraphs, and the page that comes next in reading order."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.paragraphs = []
        self.next_page = None
        self._open = []  # (tag, starts a paragraph, is unwanted) of every open element
        self._text = []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "link" and attributes.get("rel") == "next":
            self.next_page = attributes.get("href")
        if tag in VOID:
            return
        classes = set((attributes.get("class") or "").split())
        unwanted = tag in UNWANTED or classes & UNWANTED_CLASSES or attributes.get("id") in UNWANTED_IDS
        starts = tag in PARAGRAPHS or bool(classes & PARAGRAPH_CLASSES)
        if starts:
            self._finish()
        self._open.append((tag, starts, bool(unwanted)))

    def handle_startendtag(self, tag, attributes):
        if tag == "link":
            self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        if not any(tag == opened for opened, _, _ in self._open):
            return
        while self._open:
            opened, starts, _ = self._open.pop()
            if starts:
                self._finish()
            if opened == tag:
                return

    def handle_data(self, data):
        if any(unwanted for _, _, unwanted in self._open):
            return
        if any(starts for _, starts, _ in self._open):
            self._text.append(data)

    def close(self):
        super().close()
        self._finish()

    def _finish(self):
        paragraph = re.sub(r"\s+", " ", "".join(self._text)).strip()
        self._text = []
        if len(paragraph.split()) >= FEWEST_WORDS:
            self.paragraphs.append(paragraph)


def read_page(path):
    page = Prose()
    page.feed(path.read_text(encoding="utf-8", errors="replace"))
    page.close()
    return page


def pages_in_order(folder):
    """From index.html along the links to the next page; whatever those do not reach follows by name."""
    remaining = {path.name: path for path in sorted(folder.glob("*.html"))}
    name = "index.html"
    while name in remaining:
        page = read_page(remaining.pop(name))
        if name != "index.html":  # title page, licence and contents
            yield page
        name = (page.next_page or "").split("#")[0]
    for path in remaining.values():
        yield read_page(path)


def prose_of(folder):
    """Every paragraph once, in order."""
    paragraphs = (paragraph for page in pages_in_order(folder) for paragraph in page.paragraphs)
    return list(dict.fromkeys(paragraphs))


def split_in_half(paragraphs):
    half = sum(map(len, paragraphs)) / 2
    first, length = [], 0
    for paragraph in paragraphs:
        if length >= half:
            break
        first.append(paragraph)
        length += len(paragraph)
    return first, paragraphs[len(first):]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, metavar="HTML_FOLDER", help="its .html files are read")
    parser.add_argument("output", type=pathlib.Path, metavar="OUTPUT_FOLDER", help="made when it is not there")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    folder, output = arguments.folder, arguments.output
    paragraphs = prose_of(folder)
    if not paragraphs:
        print(f"demo_text: error: {folder}: no prose in its .html files", file=sys.stderr)
        return 3
    output.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("calibration.txt", "evaluation.txt"), split_in_half(paragraphs)):
        (output / name).write_text("\n\n".join(part) + "\n", encoding="utf-8")
        print(f"{output / name}: {len(part)} paragraphs, {sum(len(p.split()) for p in part)} words", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
