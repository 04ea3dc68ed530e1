"""Options as frozen dataclasses: from presets, files and flags, every key and value checked. Knows
no verb.

An options class is a frozen dataclass whose fields are written with `option` and whose
__post_init__ calls `check`:

    @dataclass(frozen=True)
    class LoopOptions:
        epochs: int = option(40, "passes over the data, at most", low=1)
        minutes: float | None = option(None, "wall-clock budget", above=0)

        def __post_init__(self):
            config.check(self)

Fields are str, bool, int, float, any of these or None, tuple[T, ...], dict[str, T], or another
options class. A nested class is an object of that name in a file; on the command line its fields
are flags like any other, so no two fields of one command may share a name.
"""

import argparse
import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

_BOUNDS = ("low", "high", "above", "below")
_SCALARS = {str: "a string", bool: "true or false", int: "an integer", float: "a number"}


def option(default, text, *, choices=None, metavar=None, **bounds):
    """A field of an options class.

    Args:
      default: its value; a list or dict is copied for every instance.
      text: one line of help. "%" needs no doubling.
      choices: the values allowed.
      metavar: what help shows in the value's place.
      bounds: low (>=), high (<=), above (>), below (<); of every element of a tuple or dict.
    """
    unknown = set(bounds) - set(_BOUNDS)
    if unknown:
        raise TypeError(f"option() has no bound {sorted(unknown)[0]!r}: expected {_BOUNDS}")
    metadata = {"help": text, "choices": choices, "metavar": metavar, "bounds": bounds}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def nested(cls):
    """A field that is an options class itself, with its defaults."""
    return dataclasses.field(default_factory=cls)


def check(options):
    """Checks types, choices and bounds of an instance; for __post_init__.

    Raises:
      ValueError: `name = value: expected …`.
    """
    for field in dataclasses.fields(options):
        if not _is_options(_types(type(options))[field.name]):
            _checked(type(options), field, getattr(options, field.name), field.name)


def load(cls, preset=None, path=None, overrides=None):
    """An instance of `cls`: defaults, then the preset, then the file, then the overrides.

    Args:
      cls: an options class.
      preset: nested dict of values, or None.
      path: JSON or TOML (by its suffix) file with an object of the same form, or None; the
        configuration that manifest.write left behind is one.
      overrides: nested dict, as from the command line.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that does not parse; an unknown key, a value of another type or out of
        bounds, by file, key, value and what was expected.
    """
    sources = [("preset", preset or {}), (path, read(path) if path else {})]
    return _build(cls, [*sources, ("command line", overrides or {})])


def read(path):
    """The mapping in a JSON or TOML file; of a run's manifest, the options it holds."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        value = tomllib.loads(text) if str(path).endswith(".toml") else json.loads(text)
    except ValueError as error:  # JSONDecodeError, TOMLDecodeError and UnicodeDecodeError are
        kind = "TOML" if str(path).endswith(".toml") else "JSON"
        raise ValueError(f"{path}: not {kind}: {error}") from error
    if not isinstance(value, Mapping):
        raise ValueError(f"{path}: expected an object, got {type(value).__name__}")
    return dict(value["options"]) if {"verb", "options"} <= set(value) else dict(value)


def as_dict(options):
    """The nested dict of plain JSON values that `load` takes back."""
    return json.loads(json.dumps(dataclasses.asdict(options)))


def add_arguments(parser, cls, presets=None, skip=()):
    """A flag for every field of `cls` and of the classes nested in it; --config FILE; and --preset
    NAME where there are presets.

    Flags that are not given leave no trace in the namespace, so that `from_args` can tell. A bool
    `x` is --x and --no_x; a tuple takes several values, a dict several KEY=VALUE; an optional value
    is None by the word none.

    Args:
      parser: argparse parser or argument group.
      cls: options class.
      presets: name -> nested dict, for `from_args` too.
      skip: names of fields that get no flag.
    """
    parser.add_argument(
        "--config", metavar="FILE", help="JSON or TOML with any of the options below"
    )
    if presets:
        described = "named settings that --config and flags build on"
        parser.add_argument("--preset", choices=list(presets), help=described)
    for owner, field, _ in _leaves(cls):
        if field.name not in skip:
            _add_flag(parser, owner, field)


def from_args(cls, args, presets=None, default=None):
    """An instance of `cls` from what `add_arguments` parsed: defaults < preset < file < flags.

    The preset is --preset's, else the one that the file names by the key `preset`, else
    default(what file and flags say at the top level), where `default` is given.

    Raises:
      FileNotFoundError, ValueError: as `load`.
    """
    given, path = vars(args), getattr(args, "config", None)
    values = read(path) if path else {}
    name = given.get("preset")
    if presets and "preset" in values:
        named = values.pop("preset")
        if named not in presets:
            expected = f"expected one of {', '.join(presets)}"
            raise ValueError(f"{path}: preset = {named!r}: {expected}")
        name = name or named
    overrides = {}
    for _, field, parents in _leaves(cls):
        if field.name in given:
            inside = functools.reduce(lambda d, key: d.setdefault(key, {}), parents, overrides)
            inside[field.name] = given[field.name]
    if default is not None and name is None:
        name = default(values | overrides)
    preset = (presets or {}).get(name) or {}
    sources = [(f"preset '{name}'", preset), (path, values), ("command line", overrides)]
    return _build(cls, sources)


# --- inside ---------------------------------------------------------------------------------------


def _build(cls, sources):
    merged = {}
    for where, values in sources:
        _merge(merged, _checked_object(cls, values, where, ""))
    try:
        return _instance(cls, merged)
    except ValueError as error:  # a rule over several fields
        where = ", ".join(str(w) for w, values in sources if values)
        raise ValueError(f"{where}: {error}" if where else str(error)) from None


def _instance(cls, values):
    hints = _types(cls)
    return cls(
        **{k: _instance(hints[k], v) if _is_options(hints[k]) else v for k, v in values.items()}
    )


def _merge(into, values):
    for key, value in values.items():
        if isinstance(value, _Section):
            _merge(into.setdefault(key, _Section()), value)
        else:
            into[key] = value


class _Section(dict):
    """Values of a nested options class; a dict-typed value is a plain dict."""


def _checked_object(cls, values, where, prefix):
    if not isinstance(values, Mapping):
        at = f"{where}: {prefix.rstrip('.')}" if prefix else where
        raise ValueError(f"{at} = {values!r}: expected an object")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    out = _Section()
    for key, value in values.items():
        at = f"{where}: {prefix}{key}"
        if key not in fields:
            known = ", ".join(fields)
            raise ValueError(f"{at} = {value!r}: unknown key; expected one of {known}")
        kind = _types(cls)[key]
        if _is_options(kind):
            out[key] = _checked_object(kind, value, where, f"{prefix}{key}.")
        else:
            out[key] = _checked(cls, fields[key], value, at)
    return out


def _checked(cls, field, value, at):
    """`value` as the field's type; ValueError `at = value: expected …`."""
    kind, optional = _unwrapped(_types(cls)[field.name])
    rule = _Rule(field.metadata.get("choices"), field.metadata.get("bounds", {}), field.name)
    if value is None and optional:
        return None
    origin = typing.get_origin(kind)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{at} = {value!r}: expected a list")
        element = typing.get_args(kind)[0]
        return tuple(_scalar(element, v, f"{at}[{i}]", rule) for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{at} = {value!r}: expected an object")
        element = typing.get_args(kind)[1]
        return {str(k): _scalar(element, v, f"{at}[{k!r}]", rule) for k, v in value.items()}
    return _scalar(kind, value, at, rule)


@dataclasses.dataclass(frozen=True)
class _Rule:
    choices: tuple | None
    bounds: dict
    name: str

    def holds(self, value):
        if self.choices is not None and value not in self.choices:
            return False
        b = self.bounds
        return (  # written so that NaN is outside every bound
            ("low" not in b or value >= b["low"])
            and ("high" not in b or value <= b["high"])
            and ("above" not in b or value > b["above"])
            and ("below" not in b or value < b["below"])
        )

    def __str__(self):
        if self.choices is not None:
            return "|".join(map(str, self.choices))
        b = self.bounds
        if "low" in b and "high" in b:
            return f"{b['low']}..{b['high']}"
        lower = f"{b['low']} <= " if "low" in b else f"{b['above']} < " if "above" in b else ""
        upper = f" <= {b['high']}" if "high" in b else f" < {b['below']}" if "below" in b else ""
        if lower and upper:
            return f"{lower}{self.name}{upper}"
        return upper.strip() or (f">= {b['low']}" if "low" in b else f"> {b['above']}")


def _scalar(kind, value, at, rule):
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{at} = {value!r}: expected {_SCALARS[kind]}")
    if kind is float and math.isnan(value) and not rule.bounds:
        raise ValueError(f"{at} = {value!r}: expected a number")
    if not rule.holds(value):
        raise ValueError(f"{at} = {value!r}: expected {rule}")
    return float(value) if kind is float else value


@functools.cache
def _types(cls):
    return typing.get_type_hints(cls)


def _unwrapped(kind):
    """(T, whether None is allowed) of T or T | None."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        inner = [k for k in typing.get_args(kind) if k is not type(None)]
        return inner[0], True
    return kind, False


def _is_options(kind):
    return dataclasses.is_dataclass(kind)


def _leaves(cls, parents=()):
    """(class, field, names of the fields above) of every field that is a value."""
    for field in dataclasses.fields(cls):
        kind = _types(cls)[field.name]
        if _is_options(kind):
            yield from _leaves(kind, (*parents, field.name))
        else:
            yield cls, field, parents


def _add_flag(parser, cls, field):
    kind, optional = _unwrapped(_types(cls)[field.name])
    default = field.default
    if default is dataclasses.MISSING:
        default = field.default_factory()
    shown = "" if default is None else f" (default {_shown(default)})"
    text = (field.metadata.get("help", "") + shown).replace("%", "%%")
    common = {"dest": field.name, "default": argparse.SUPPRESS}
    if kind is bool:
        parser.add_argument(f"--{field.name}", action="store_true", help=text, **common)
        parser.add_argument(
            f"--no_{field.name}", action="store_false", help=argparse.SUPPRESS, **common
        )
        return
    origin, many = typing.get_origin(kind), {}
    element = kind
    if origin is tuple:
        element, many = typing.get_args(kind)[0], {"nargs": "*"}
    elif origin is dict:
        element = typing.get_args(kind)[1]
        many = {"nargs": "*", "action": _Pairs}
    choices, metavar = field.metadata.get("choices"), field.metadata.get("metavar")
    if choices is not None and metavar is None:
        metavar = "|".join(map(str, choices))
    parse = _pair_parser(element) if origin is dict else _parser(element, optional)
    parser.add_argument(f"--{field.name}", type=parse, help=text, metavar=metavar, **common, **many)


def _shown(value):
    if isinstance(value, dict):
        return " ".join(f"{k}={v}" for k, v in value.items()) or "none"
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def _parser(kind, optional):
    def parse(text):
        return None if optional and text == "none" else _word(kind, text)

    parse.__name__ = kind.__name__  # argparse: "invalid int value"
    return parse


def _word(kind, text):
    if kind is bool:
        if text not in ("true", "false"):
            raise argparse.ArgumentTypeError(f"{text!r}: expected true or false")
        return text == "true"
    return kind(text)


def _pair_parser(kind):
    def parse(text):
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise argparse.ArgumentTypeError(f"{text!r}: expected KEY=VALUE")
        return key, _word(kind, value)

    parse.__name__ = f"KEY={kind.__name__}"
    return parse


class _Pairs(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, dict(values))
