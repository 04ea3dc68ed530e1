"""Item text: a template filled with an item's fields. Knows no behaviours, no vectors and no codes.

A template consists of parts, divided by `|`, each with any number of fields:

    {title} | {category} | by {attributes[0]} | {attributes[1:]} | {price} dollars

A part one of whose fields is missing is left out as a whole, with its words; what is left is joined
by the separator. So a missing field never leaves a separator, a label or a bracket behind.
"""

import re
from dataclasses import dataclass

import numpy as np

from genrecall.training import config
from genrecall.training.config import option

FIELDS = ("title", "category", "attributes", "price", "ecpm")
NAMELESS = "unknown item"
# What some catalogues write where they know nothing.
_UNKNOWN = {"", "unknown", "n/a", "none", "null"}

_FIELD = re.compile(r"\{([^{}]*)\}")
_REFERENCE = re.compile(r"(\w+)(?:\[(?:(-?\d+)|(-?\d*):(-?\d*))\])?")


@dataclass(frozen=True)
class TextOptions:
    """How an item reads."""

    template: str = option(
        "{title} | {category} | {attributes}",
        "item text: parts divided by '|', each left out when one of its fields is missing; fields: "
        "{title} {category} {attributes} {attributes[0]} {attributes[1:]} {price} {ecpm}",
    )
    separator: str = option(". ", "what joins the parts of an item text")

    def __post_init__(self):
        config.check(self)
        parse_template(self.template)


@dataclass(frozen=True)
class Field:
    """One `{name}` of a template; `pick` takes one attribute (int) or some (slice), None all."""

    name: str
    pick: int | slice | None = None


def parse_template(template):
    """A template -> its parts, each a list of words (str) and fields (Field).

    Raises:
      ValueError: a field that items do not have, a bracket without its partner, no field at all.
    """
    parts = []
    for part in template.split("|"):
        pieces = _FIELD.split(part.strip())
        if any(bracket in words for words in pieces[::2] for bracket in "{}"):
            raise ValueError(f"template = {template!r}: a bracket without its partner")
        parts.append(
            [_field(template, p) if i % 2 else p for i, p in enumerate(pieces) if i % 2 or p]
        )
    if not any(isinstance(piece, Field) for part in parts for piece in part):
        raise ValueError(f"template = {template!r}: expected at least one {{field}}")
    return parts


def item_texts(items, options=None):
    """Texts of all items, in row order: list[str] [N]. An item that has none of the template's
    parts is "unknown item".

    Args:
      items: data_folder.Items.
      options: TextOptions; None: the defaults.
    """
    options = options or TextOptions()
    parts = parse_template(options.template)
    return [_item_text(parts, options.separator, items, row) for row in range(len(items))]


def _item_text(parts, separator, items, row):
    said = []
    for part in parts:
        pieces = [_value(items, row, p) if isinstance(p, Field) else p for p in part]
        # A title that ends in the separator's sign would double it.
        if pieces and all(pieces) and (words := "".join(pieces).rstrip(separator)):
            said.append(words)
    return separator.join(said) or NAMELESS


def _value(items, row, field):
    """What a field says of an item; "" where it is missing."""
    if field.name in ("price", "ecpm"):
        number = getattr(items, field.name)[row]
        return f"{number:.2f}".rstrip("0").rstrip(".") if np.isfinite(number) else ""
    if field.name == "title":
        return _known(items.titles[row])
    category = items.categories[row]
    if field.name == "category":
        return _known(category)
    attributes = items.attributes[row]
    if isinstance(field.pick, int):
        inside = -len(attributes) <= field.pick < len(attributes)
        return _known(attributes[field.pick]) if inside else ""
    picked = attributes if field.pick is None else attributes[field.pick]
    return ", ".join(a for a in dict.fromkeys(picked) if _known(a) and a != category)


def is_known(text):
    """Whether a value says something: not empty, and no "Unknown" or the like."""
    return text.strip().lower() not in _UNKNOWN


def _known(text):
    return text.strip() if is_known(text) else ""


def _field(template, reference):
    match = _REFERENCE.fullmatch(reference)
    if not match or match[1] not in FIELDS:
        raise ValueError(
            f"template = {template!r}: unknown field {{{reference}}}; expected one of "
            f"{', '.join(FIELDS)}, attributes[0], attributes[1:]"
        )
    name, at, begin, end = match.groups()
    if match[0] == name:
        return Field(name)
    if name != "attributes":
        raise ValueError(f"template = {template!r}: {{{reference}}}: only attributes is a list")
    if at is not None:
        return Field(name, int(at))
    return Field(name, slice(int(begin) if begin else None, int(end) if end else None))
