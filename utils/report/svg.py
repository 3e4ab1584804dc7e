"""Matplotlib figures as SVG inside of a page: no references to outside, real text, and values to hover over."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

# Real text, which can be read aloud, selected and found.
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "font.size": 10}
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def inline_svg(figure: Figure, name: str, label: str, values: Mapping[str, Sequence[str]]) -> Markup:
    """A figure as an ``<svg>`` element.

    Args:
        figure: the figure, made in a context of STYLE.
        name: begins all its ids, which no other element of the page may have.
        label: what it shows, for those who do not see it.
        values: by gid of an artist, the text for each of its markers, or for the artist itself where it has none.
    """
    content = io.BytesIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(content, format="svg", metadata=NO_METADATA, transparent=True)
    svg = ElementTree.fromstring(content.getvalue())
    for element in svg.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): _renamed(value, _local(key), name) for key, value in element.attrib.items()}
    for parent in list(svg.iter()):
        for child in [child for child in parent if child.tag in ("metadata", "style")]:
            parent.remove(child)
    for gid, texts in values.items():
        _add_titles(svg, f"{name}-{gid}", texts)
    for size in ("width", "height"):
        svg.attrib.pop(size)  # the page gives it one
    svg.attrib |= {"role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


def _local(tag: str) -> str:
    """A name without its namespace, which HTML needs none of."""
    return tag.rpartition("}")[2]


def _renamed(value: str, key: str, name: str) -> str:
    """The value of an attribute, where ids begin with ``name``."""
    if key == "id":
        return f"{name}-{value}"
    return re.sub(r"^#" if key == "href" else r"(?<=url\(#)", lambda match: f"{match[0]}{name}-", value)


def _add_titles(svg: ElementTree.Element, element_id: str, texts: Sequence[str]) -> None:
    group = next(element for element in svg.iter() if element.get("id") == element_id)
    marks = list(group.iter("use")) or [group]
    for mark, text in zip(marks, texts, strict=True):
        title = ElementTree.Element("title")
        title.text = text
        mark.insert(0, title)
