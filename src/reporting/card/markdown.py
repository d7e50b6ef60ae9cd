"""Text of others in Markdown: names, commands and paths are shown as they are, and mark nothing up."""

from __future__ import annotations

import re

_SIGNS = re.compile(r"[\\`*_\[\]<>#|~&$]")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_TOKEN = re.compile(r"\bhf_\w{8,}")


def literal(text: str) -> str:
    """One line of plain text, for a sentence or the cell of a table."""
    return _SIGNS.sub(r"\\\g<0>", " ⏎ ".join(text.strip().splitlines())) or "(empty)"


def fenced(text: str) -> str:
    """A block of code that no line of `text` can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text.strip()}\n{fence}\n"


def scrubbed(text: str) -> str:
    """Without tokens of the hub and what stands before the host in an address: `https://me:word@host`."""
    return _TOKEN.sub("hf_…", _CREDENTIALS.sub("…@", text))


def link(text: str, address: str) -> str:
    """`address` must need no escaping."""
    return f"[{literal(text)}]({address})"
