"""A page as its reader finds it: tables, charts and images under their headings."""

import base64
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import PIL.Image

VOID = ("meta", "img", "br", "path", "use")


class Page(HTMLParser):
    """Tables by heading, charts and images with their heading and title, every tag and attribute, and the text."""

    def __init__(self, path):
        super().__init__()
        self.tables, self.charts, self.images, self.attributes, self.tags = {}, [], [], [], set()
        self.open, self.text, self.heading, self.caption, self.chart = [], "", "", "", None
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.add(tag)
        self.attributes += attributes
        if tag not in VOID or self.chart is not None:
            self.open.append(tag)
        if tag in ("h2", "h3"):
            self.heading = ""
        elif tag == "table":
            self.rows = []
            self.tables.setdefault(self.heading, []).append(self.rows)
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "figure":
            self.caption = ""
            if "aria-label" in found:
                self.chart = []
                self.charts.append((self.heading, found["aria-label"], self.chart))
        elif tag == "img":
            kind, _, data = found["src"].partition(",")
            assert kind == "data:image/png;base64"
            self.images.append((self.heading, self.caption, base64.b64decode(data)))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if self.chart is not None:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "figure":
            self.chart = None

    def handle_data(self, data):
        tag = self.open[-1] if self.open else ""
        if tag in ("td", "th"):
            self.rows[-1][-1] += data
        elif tag in ("h2", "h3"):
            self.heading += data
        elif self.chart is not None and data.strip():
            self.chart.append(data)
        elif "figcaption" in self.open:
            self.caption += data
        if "style" not in self.open:
            self.text += data

    def charts_under(self, heading):
        """Titles of the charts under a heading."""
        return [title for at, title, _ in self.charts if at == heading]

    def images_under(self, heading):
        """Captions and pixels of the images under a heading."""
        return [
            (caption, np.asarray(PIL.Image.open(BytesIO(data)))) for at, caption, data in self.images if at == heading
        ]

    def reaches_outside(self):
        """What a browser would fetch."""
        sources = ("src", "href", "srcset", "data", "action", "xlink:href", "poster")
        return [
            value
            for name, value in self.attributes
            if name in sources and not value.startswith(("data:image/png", "#"))
        ]
