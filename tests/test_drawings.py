# SPDX-License-Identifier: Apache-2.0
"""The drawings of the site: no text runs out of its picture."""

from pathlib import Path
from xml.etree import ElementTree

import pytest


DRAWINGS = sorted(
    path
    for path in (Path(__file__).parent.parent / "docs/images").glob("*.svg")
    if ElementTree.parse(path).getroot().get("font-family") == "sans-serif"  # drawn by hand
)
# Mean width of a character over the font size, in the widest of the usual fonts (DejaVu Sans, Courier).
WIDTHS = {"sans-serif": 0.56, "monospace": 0.602}
MARGIN = 12  # to the edge; the corners are round


def texts(node, inherited):
    """Each text with the attributes that it inherits."""
    own = inherited | node.attrib
    if node.tag.endswith("}text"):
        yield own, "".join(node.itertext())
    for child in node:
        yield from texts(child, own)


@pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: path.stem)
def test_texts_stay_inside(path):
    root = ElementTree.parse(path).getroot()
    _, _, width, height = map(float, root.get("viewBox").split())
    found = list(texts(root, {}))
    assert found
    for style, text in found:
        size = float(style["font-size"])
        long = WIDTHS[style["font-family"]] * size * len(text)
        left = float(style["x"]) - long * {"middle": 0.5, "end": 1.0}.get(style.get("text-anchor", "start"), 0.0)
        assert left >= MARGIN and left + long <= width - MARGIN, (text, left, left + long, width)
        assert float(style["y"]) <= height - MARGIN, text
