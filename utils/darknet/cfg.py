"""Darknet cfg text: sections of ``key=value`` lines, read and written as Darknet does.

A block is one section as a dict of strings; ``block["type"]`` is the section's name. The list of blocks begins with
``[net]``, and the block behind it is layer 0. What the keys mean is the business of :mod:`utils.darknet.parse`.
"""

import re
from pathlib import Path

from utils.errors import InputError

# Darknet knows these sections under two names; we keep one.
SECTION_ALIASES = {
    "network": "net",
    "conv": "convolutional",
    "max": "maxpool",
    "avg": "avgpool",
    "silence": "empty",
}


class Block(dict):
    """One section: a dict of strings that remembers the file and line it came from, for messages."""

    def __init__(self, *args, source: str = "cfg", line: int | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.source = source
        self.line = line

    def copy(self) -> "Block":
        """A block of its own with the same origin."""
        return Block(self, source=self.source, line=self.line)


def read_cfg(path: str | Path) -> list[Block]:
    """Read a cfg file into blocks, ``[net]`` first.

    Raises:
        InputError: the file is missing, is not text, or does not parse; the message names file and line.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such cfg file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file, so not a Darknet cfg") from None
    return parse_cfg(text, str(path))


def parse_cfg(text: str, source: str = "cfg") -> list[Block]:
    """Parse cfg text into blocks, ``[net]`` first.

    As in Darknet, white space counts nowhere, the first of duplicate keys counts, and ``#`` and ``;`` begin a comment.

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
        if key == "type":
            raise InputError(f"{where}: Darknet knows no option named type")
        blocks[-1].setdefault(key, value)
    if not blocks or blocks[0]["type"] != "net":
        raise InputError(f"{source}: a cfg begins with [net], this one with {_first_section(blocks)}")
    return blocks


def format_cfg(blocks: list[dict[str, str]]) -> str:
    """The text of ``blocks`` that Darknet reads: ``[type]``, then one ``key=value`` at a line's start."""
    return "\n".join(
        f"[{block['type']}]\n" + "".join(f"{key}={value}\n" for key, value in block.items() if key != "type")
        for block in blocks
    )


def _first_section(blocks: list[Block]) -> str:
    return f"[{blocks[0]['type']}]" if blocks else "no section at all"
