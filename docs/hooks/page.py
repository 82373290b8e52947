"""What MkDocs calls while it builds the site, see ``hooks`` in mkdocs.yml."""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ablations"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import links
import summary

FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
ROLE = re.compile(r":(?:class|func|meth|data|mod|attr|exc):\s*<code>(~?)([^<]*)</code>")
UNTYPED = re.compile(r"(<td>\s*</td>(?:(?!</tr>).)*)<em>required</em>", re.DOTALL)
"""A row of a table of parameters for one that the signature does not name: it is among the ``**kwargs``"""
LONELY_COLONS = re.compile(r"<p>::</p>\s*")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called with the Markdown of each page. Puts in the tables of ablations, see docs/ablations/summary.py.

    :raises PluginError: a page asks for results that there are not
    """
    try:
        return summary.fill_in(markdown)
    except (KeyError, OSError) as error:
        raise PluginError(f"{page.file.src_path}: {error}") from error


def on_page_content(content: str, **_: Any) -> str:
    """Called with the HTML of each page. TeX becomes MathML, which browsers show by themselves: offline and without a script.
    Sphinx's roles and double colons in docstrings, which Markdown does not know, become plain code. SB3's files become links.
    What is among the ``**kwargs`` is optional, while mkdocstrings says "required" of all that the signature does not name.
    """

    def to_mathml(match: re.Match[str]) -> str:
        tag, text = match.group(1), html.unescape(match.group(2)).strip()
        display = "block" if tag == "div" else "inline"
        return f'<{tag} class="formula">{convert(text[2:-2].strip(), display=display)}</{tag}>'

    def to_code(match: re.Match[str]) -> str:
        name = match.group(2)
        return f"<code>{name.split('.')[-1] if match.group(1) else name}</code>"

    content = UNTYPED.sub(r"\1<em>optional</em>", ROLE.sub(to_code, FORMULA.sub(to_mathml, content)))
    return links.link_sb3(LONELY_COLONS.sub("", content).replace("::</p>", ":</p>"))
