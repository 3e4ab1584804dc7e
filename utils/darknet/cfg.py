"""Darknet cfg text: sections of ``key=value`` lines, read and written as Darknet does.

A section is a dict of strings, whose ``"type"`` is the section's name. The list of sections (``blocks``) begins with
``[net]``, and the section after it is layer 0. :mod:`utils.darknet.parse` interprets the keys.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.errors import InputError
from utils.files import read_text
from utils.notices import notice

# Darknet accepts two names for each of these sections; we use the second.
SECTION_ALIASES = {
    "network": "net",
    "conv": "convolutional",
    "max": "maxpool",
    "avg": "avgpool",
    "local_avg": "local_avgpool",
    "deconv": "deconvolutional",
    "conn": "connected",
    "soft": "softmax",
    "lrn": "normalization",
    "silence": "empty",
}


class Block(dict):
    """One section: a dict of strings, with the file and line of its header for messages."""

    def __init__(self, *args, source: str = "cfg", line: int | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.source = source
        self.line = line

    def copy(self) -> "Block":
        """A copy with the same file and line."""
        return Block(self, source=self.source, line=self.line)


def read_cfg(path: str | Path) -> list[Block]:
    """Read the sections of a cfg file, ``[net]`` first.

    Raises:
        InputError: the file is missing, is not text, or does not parse; the message names file and line.
    """
    return parse_cfg(read_text(path, "cfg file"), str(path))


def parse_cfg(text: str, source: str = "cfg") -> list[Block]:
    """Parse cfg text into sections, ``[net]`` first.

    As in Darknet, white space is ignored everywhere, the first of duplicate keys counts, and ``#`` or ``;`` starts a
    comment.

    Args:
        text: the cfg.
        source: the file's name, for messages.

    Raises:
        InputError: a line that is neither a section nor ``key=value``, or a cfg that does not begin with ``[net]``.
    """
    blocks: list[Block] = []
    for number, raw in enumerate(re.split(r"\r?\n|\r", text), start=1):
        line = re.sub(r"\s", "", re.split(r"[#;]", raw, maxsplit=1)[0])
        if not line:
            continue
        where = f"{source}:{number}"
        if line.startswith("["):
            if not re.fullmatch(r"\[\w+\]", line):
                raise InputError(f"{where}: {raw.strip()!r} is not a section header such as [convolutional]")
            name = line[1:-1]
            blocks.append(Block(type=SECTION_ALIASES.get(name, name), source=source, line=number))
            continue
        key, equals, value = line.partition("=")
        if not (key and equals):
            raise InputError(f"{where}: {raw.strip()!r} is neither a [section] nor key=value")
        if not blocks:
            raise InputError(f"{where}: {raw.strip()!r} stands before the first [section]")
        if key != "type":
            blocks[-1].setdefault(key, value)
        elif blocks[-1]["type"] != "cost":  # which has it, and is not supported
            notice(f"warning: {where}: no layer but [cost] has an option named type: it is left out")
    if not blocks or blocks[0]["type"] != "net":
        raise InputError(f"{source}: a cfg begins with [net], this one with {_first_section(blocks)}")
    return blocks


def format_cfg(blocks: Sequence[Mapping[str, str]]) -> str:
    """The text of a cfg with these sections, as Darknet reads it."""
    return "\n".join(
        f"[{block['type']}]\n" + "".join(f"{key}={value}\n" for key, value in block.items() if key != "type")
        for block in blocks
    )


def _first_section(blocks: list[Block]) -> str:
    return f"[{blocks[0]['type']}]" if blocks else "no section at all"
