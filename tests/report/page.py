"""A page as a browser would take it apart."""

import base64
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "br", "hr", "source"}
SECTIONS = ("headline", "training", "layers", "curve", "pairs", "certificate", "limits")


class Page(HTMLParser):
    """Checks that tags match while it reads.

    Attributes:
        text: of every section by its id.
        pictures: PNG files of every section.
        missing: sections that say that they have nothing.
        resources: whatever a browser would load.
        downloads: by file name.
        code: text of every <pre> by its class.
    """

    def __init__(self, path):
        super().__init__()
        self.open, self.section, self.pre = [], "", None
        self.text, self.pictures, self.missing, self.resources = {}, {}, set(), []
        self.downloads, self.code, self.tags = {}, {}, set()
        self.feed(Path(path).read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = given["id"]
            self.text[self.section], self.pictures[self.section] = "", []
        if tag == "pre":
            self.pre = given["class"]
            self.code[self.pre] = ""
        if given.get("class") == "missing":
            self.missing.add(self.section)
        self.resources += [given[name] for name in ("src", "href", "srcset", "data") if name in given]
        if tag == "img":
            assert given["alt"]
            self.pictures[self.section].append(decoded(given["src"]))
        if "download" in given:
            self.downloads[given["download"]] = decoded(given["href"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "section":
            self.section = ""
        if tag == "pre":
            self.pre = None

    def handle_data(self, data):
        if self.section:
            self.text[self.section] += data
        if self.pre:
            self.code[self.pre] += data


def decoded(url):
    return base64.b64decode(url.partition("base64,")[2], validate=True)


def check(page, *, without=()):
    """All sections, and in each its pictures or a sentence; nothing from outside; nothing that runs."""
    assert tuple(page.text) == SECTIONS
    assert all(url.startswith("data:") for url in page.resources)
    assert not page.tags & {"script", "iframe", "object"}
    for section in ("training", "layers", "curve", "pairs"):
        assert (section in page.missing) == (section in without), page.text[section]
        if section not in without:
            light, dark = page.pictures[section]
            assert light != dark
            assert all(picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) > 5000 for picture in (light, dark))
