"""Docstrings as the documentation shows them: reStructuredText roles and formulas into Markdown and MathML.

The code's docstrings use the notation that editors and Sphinx know (``:math:`` and ``.. math::``, ``:class:`...```). Formulas
become MathML, which browsers draw without a script or a network.
"""

from __future__ import annotations

import re

import griffe
from latex2mathml.converter import convert as mathml


def _inline(latex: str) -> str:
    return mathml(" ".join(latex.split()))


def _block(latex: str) -> str:
    lines = re.sub(r"\\qquad|\\quad", r"\\;\\;\\;", " ".join(latex.split()))
    return f'\n<div class="formula">{mathml(lines, display="block")}</div>\n'


def markdown(text: str) -> str:
    """A docstring's text as Markdown with MathML."""
    out: list[str] = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        found = re.match(r"^(\s*)\.\. math::\s*(.*)$", line)
        if found:
            indent, body = len(found[1]), [found[2]]
            at += 1
            while at < len(lines) and (not lines[at].strip() or len(lines[at]) - len(lines[at].lstrip()) > indent):
                body.append(lines[at].strip())
                at += 1
            while body and not body[-1]:
                body.pop()
            out += [found[1] + part for part in _block(" ".join(body)).splitlines()] + [""]
            continue
        out.append(line)
        at += 1
    joined = "\n".join(out)
    joined = re.sub(r":math:`([^`]+)`", lambda m: _inline(m[1]), joined, flags=re.S)
    joined = re.sub(r":\w+:`~?([^`<]+)`", lambda m: f"`{m[1].split('.')[-1] if '~' in m[0] else m[1]}`", joined)
    return re.sub(r"``([^`]+)``", r"`\1`", joined)


class Formulas(griffe.Extension):
    """Turns every docstring into Markdown before it is read."""

    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
