"""Text of every origin: which encoding the bytes of a file are in.

UTF-8 and UTF-16 are told by their rules. What is neither comes from a Windows of China (GB18030, which extends GBK and
GB2312) or of the West (cp1252); no byte is wrong in both, so :func:`looks_chinese` counts evidence.
"""

import codecs
import os
import re
import sys
import threading
import unicodedata
from pathlib import Path

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
CONTROLS = re.compile(r"[\x00-\x08\x0e-\x19\x1b-\x1f\x7f]")  # what a text does not hold; \x1a ends a DOS file
FOUR_BYTES = re.compile(rb"[\x81-\xfe][0-9][\x81-\xfe][0-9]")  # the characters that GB18030 adds to GBK
# Codecs that are slow, or decode what nobody means, though a file may name them.
NOT_FOR_FILES = {"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined", "utf-7"}
# Supersets in place of the names that files have: Windows says gb2312 and iso-8859-1 for these.
WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "iso8859-1": "cp1252"}

_announced: set[tuple[str, str]] = set()
_LOCK = threading.Lock()  # threads read label files


def decode_text(content: bytes, declared: str | None = None) -> tuple[str, str]:
    """Decode the content of a text file, without its byte-order mark.

    The first that fits counts: a byte-order mark, ``declared``, UTF-8, UTF-16 without a mark, GB18030, cp1252.

    Returns:
        The text, and the name of its encoding.

    Raises:
        UnicodeError: this is no text.
    """
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            return _plain(content.decode(encoding)), "UTF-8" if mark == codecs.BOM_UTF8 else "UTF-16"
    text = _decoded(content, declared) if declared else None
    if (
        declared and text is not None and text.lstrip().startswith("<?xml")
    ):  # utf-16, say, is refuted by a declaration in ASCII
        return text, declared.upper() if declared.startswith(("utf", "gb")) else declared
    if b"\0" in content:
        return _utf_16(content), "UTF-16"
    try:
        # A mark within the text comes from files that were joined.
        return content.decode("utf-8").replace("\ufeff", ""), "UTF-8"
    except UnicodeDecodeError:
        pass
    text = _decoded(content, "gb18030")
    if text is not None and looks_chinese(content):
        return text, "GB18030"
    return _plain(content.decode("cp1252")), "cp1252"


def looks_chinese(content: bytes) -> bool:
    """Whether the bytes above 127 are rather Chinese text than accented letters; ``content`` decodes as GB18030.

    Accented letters stand alone or in twos between ASCII letters, but Chinese characters in rows, of two bytes each,
    most of them of the 3,755 frequent ones (level 1 of GB2312) or its punctuation.
    """
    content, fours = FOUR_BYTES.subn(b"", content)
    chinese, western = 4 * fours, 0
    for run in re.finditer(rb"[\x80-\xff]+", content):
        length, lead = run.end() - run.start(), content[run.start()]
        before, after = content[run.start() - 1 : run.start()], content[run.end() : run.end() + 1]
        frequent = 0xB0 <= lead <= 0xD7 or 0xA1 <= lead <= 0xA9
        between_letters = before.isalpha() and after.isalpha()
        in_a_row = length >= 4 and len(set(run[0])) > 1  # not a line of dashes
        if in_a_row or (length == 2 and frequent and not between_letters):
            chinese += length
        else:
            western += length
    return chinese > western


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; the name of a file whose bytes are no UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def declared_encoding(content: bytes) -> str | None:
    """The codec that an XML declaration names; None where there is none that Python has."""
    match = re.match(rb"""\s*<\?xml[^>]{0,200}?encoding\s*=\s*["']([\w.-]{1,40})["']""", content)
    if not match:
        return None
    try:
        name = codecs.lookup(match[1].decode("ascii")).name.replace("_", "-")
    except (LookupError, UnicodeError):
        return None
    return None if name in NOT_FOR_FILES else WIDER.get(name, name)


def announce(path: Path, what: str, encoding: str) -> None:
    """Say on stderr that a file is not read as Unicode, once per kind of file and encoding."""
    with _LOCK:
        new = (what, encoding) not in _announced
        _announced.add((what, encoding))
    if new and os.environ.get("RANK", "0") == "0":  # torchrun's: one of the processes says it
        print(f"{path}: read as {encoding}; if that is wrong, save it as UTF-8", file=sys.stderr)


def _decoded(content: bytes, encoding: str) -> str | None:
    try:
        return _plain(content.decode(encoding))
    except (ValueError, LookupError):  # LookupError: not an encoding of text
        return None


def _plain(text: str) -> str:
    """``text`` without byte-order marks, if it holds no control characters."""
    if CONTROLS.search(text):
        raise UnicodeError("control characters: no text")
    return text.replace("\ufeff", "")


def _utf_16(content: bytes) -> str:
    """Decode UTF-16 without a byte-order mark; of its two orders only one gives text, in most cases."""
    if 4 * content.count(0) < len(content) and _decoded(content.replace(b"\0", b""), "utf-8") is not None:
        raise UnicodeError("other text with a few zeros in it")
    # The high bytes of ASCII characters are 0.
    orders = sorted(("utf-16-le", "utf-16-be"), key=lambda order: -content[order == "utf-16-le" :: 2].count(0))
    for order in orders:
        text = _decoded(content, order)
        if text is not None and not any(unicodedata.category(letter) in ("Cn", "Co") for letter in set(text)):
            return text
    raise UnicodeError("zeros, but not UTF-16")
