"""A figure's SVG made part of a page: no file of its own, colours that follow the page's, labels that can be switched off."""

from __future__ import annotations

import re

_HEAD = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>", re.DOTALL)
_SIZE = re.compile(r'(<svg [^>]*?)\swidth="[^"]*"|(<svg [^>]*?)\sheight="[^"]*"')
_LABELLED = re.compile(r'\bid="(seed|mean|band):([^"]*)"')
_ID = re.compile(r'\b(id="|href="#|url\(#)')
_DIGITS = re.compile(r"(>[^<]*<|\d\.\d\d)\d*")  # what stands between tags is left as it is: 0.005 is a label
_COLORS = {"#000000": "currentColor", "#ffffff": "var(--paper)", "#e4e4e4": "var(--grid)", "#e0e0e0": "var(--grid)"}


def inline(svg: bytes, prefix: str) -> str:
    """The <svg> element, its ids made unique by `prefix`; black, white and grid follow the page's colours.

    An artist with the id "kind:label" gets class="kind" and data-label="label".
    """
    text = _HEAD.sub("", svg.decode())
    for _ in range(2):  # width, height
        text = _SIZE.sub(lambda match: match[1] or match[2], text, count=1)
    box = re.search(r'viewBox="0 0 ([0-9.]+)', text)
    assert box is not None, "matplotlib writes a viewBox"
    width = float(box[1])
    text = text.replace("<svg ", f'<svg style="max-width:{1.9 * width:.0f}px;min-width:{1.14 * width:.0f}px" ', 1)
    text = _LABELLED.sub(r'class="\1" data-label="\2"', text)
    text = _ID.sub(rf"\g<1>{prefix}-", text)
    text = _DIGITS.sub(r"\1", text)  # hundredths of a point are enough
    for color, name in _COLORS.items():
        text = re.sub(color, name, text, flags=re.IGNORECASE)
    return text.strip()
