"""Strict reading of JSON objects: a key that is unknown, missing or of another type is an error."""

import json
import os
from collections.abc import Mapping
from pathlib import Path


class Fields:
    """The keys of a JSON object, each taken once; `finish` refuses those nobody took."""

    def __init__(self, value, where: str):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected an object, got {type(value).__name__}")
        self.where = where
        self._left = dict(value)

    def take(self, key, expected: type, default):
        """The key's value, or `default` when it is absent; a default of ... makes it required."""
        value = self._left.pop(key, default)
        if value is ...:
            raise ValueError(f"{self.where}: key '{key}' is missing")
        if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
            raise ValueError(f"{self.where}: {key} = {value!r}: expected {_TYPE_NAMES[expected]}")
        return value

    def text(self, key, default=...) -> str:
        return self.take(key, str, default)

    def integer(self, key, default=...) -> int:
        return self.take(key, int, default)

    def _elements(self, key, default, expected: type, name: str) -> list:
        values = list(self.take(key, (list, tuple), default))
        for i, v in enumerate(values):
            if not isinstance(v, expected) or isinstance(v, bool):
                raise ValueError(f"{self.where}: {key}[{i}] = {v!r}: expected {name}")
        return values

    def texts(self, key, default=...) -> list[str]:
        return self._elements(key, default, str, "a string")

    def ints(self, key, default=...) -> list[int]:
        return self._elements(key, default, int, "an integer")

    def numbers(self, key, default=...) -> list[float]:
        return self._elements(key, default, (int, float), "a number")

    def lists(self, key, default=...) -> list[list]:
        return self._elements(key, default, (list, tuple), "a list")

    def objects(self, key) -> "list[Fields]":
        values = self._elements(key, [], Mapping, "an object")
        return [Fields(v, f"{self.where}: {key}[{i}]") for i, v in enumerate(values)]

    def object(self, key) -> "Fields":
        return Fields(self.take(key, Mapping, {}), f"{self.where}: {key}")

    def text_map(self, key, default=...) -> dict[str, str]:
        values = self.take(key, Mapping, default)
        for k, v in values.items():
            if not isinstance(k, str) or not isinstance(v, str):
                raise ValueError(
                    f"{self.where}: {key}[{k!r}] = {v!r}: expected a string for a string"
                )
        return dict(values)

    def finish(self):
        if self._left:
            raise ValueError(f"{self.where}: unknown key '{next(iter(self._left))}'")


_TYPE_NAMES = {str: "a string", int: "an integer", (list, tuple): "a list", Mapping: "an object"}


def read_json(path: str | os.PathLike):
    """The parsed file; ValueError when it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # also a UnicodeDecodeError
        raise ValueError(f"{path}: not JSON: {error}") from error


def check_version(top: Fields, expected: int):
    """Takes `format_version` and refuses any but the expected."""
    version = top.integer("format_version")
    if version != expected:
        raise ValueError(f"{top.where}: format_version = {version}: expected {expected}")


def check_integer(value, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{where} = {value!r}: expected an integer")
    return value
