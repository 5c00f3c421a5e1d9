"""Formulas as MathML at build time: `$...$` and `$$...$$` are read by every browser without a script or a font."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

ARITHMATEX = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """The page with every formula converted; a formula that cannot be read ends the build."""
    return ARITHMATEX.sub(_converted, content)


def _converted(match: re.Match[str]) -> str:
    display = "block" if match[2] == "[" else "inline"
    return convert(html.unescape(match[3]).strip(), display=display)
