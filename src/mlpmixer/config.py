"""The base of every config: the check of its fields, and its way to and from JSON.

Sizes are pixels, (height, width).
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Literal, TypeVar

from mlpmixer.registry import nearest, shown

T = TypeVar("T")

MAX_JSON_ITEMS = 1_000_000  # 200 MB of Python objects at most, where a text of `[],` would take twenty times its size
MAX_JSON_DEPTH = 64


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as one number or as (height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def one_if_square(height: int, width: int) -> int | tuple[int, int]:
    """The reverse of `pair`: one number if the size is square."""
    return height if height == width else (height, width)


def require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


class Config:
    """Base of the frozen dataclasses that users fill in: the constructor checks every field against its type.

    `owner` is what users write before the name of a field: `class Optim(Config, owner="optim")` has `optim.lr`.
    """

    _owner: typing.ClassVar[str] = ""

    def __init_subclass__(cls, *, owner: str = "") -> None:
        super().__init_subclass__()
        cls._owner = owner or cls._owner

    def __post_init__(self) -> None:
        for name, hint in field_types(type(self)).items():
            value = getattr(self, name)
            right = checked(hint, value, f"{self._owner}.{name}" if self._owner else name)
            if right is not value:
                object.__setattr__(self, name, right)
        self.validate()

    def validate(self) -> None:
        """Check ranges and fields that must fit together; the types are right by then. Raises ValueError."""

    def tag(self) -> dict[str, str]:
        """JSON entries beside the fields, such as which of several kinds of config this is."""
        return {}

    @classmethod
    def untagged(cls: type[T], values: dict[str, Any]) -> tuple[type[T], dict[str, Any]]:
        """The class that the tag in `values` names, and the fields alone. The reverse of `tag`."""
        return cls, values


_FIELD_TYPES: dict[type, dict[str, Any]] = {}


def field_types(cls: type) -> dict[str, Any]:
    """The type of each field of a dataclass, cached."""
    if cls not in _FIELD_TYPES:
        hints = typing.get_type_hints(cls)
        _FIELD_TYPES[cls] = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
    return _FIELD_TYPES[cls]


def checked(hint: Any, value: Any, path: str) -> Any:
    """`value` as the type `hint` has it, or ValueError, which calls it `path`.

    An int becomes a float, a list a tuple, a scalar of numpy or torch the Python value that it holds, and a dict the
    dataclass that `to_json` made it of. A float must be finite, and a bool is not an int.
    """
    if hint is Any or (type(value) is hint and hint is not float):
        return value
    if getattr(value, "shape", None) == ():
        value = value.item()
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_json(typing.cast(type[Any], hint), value, path)
    if origin is Literal:
        if value in args:
            return value
        raise ValueError(f"{path}={shown(value)} is not one of {', '.join(map(str, args))}{did_you_mean(value, args)}")
    if origin in (typing.Union, types.UnionType):
        for option in args:
            with suppress(ValueError):
                return checked(option, value, path)
    elif origin is tuple and isinstance(value, list | tuple):
        hints = args[:1] * len(value) if args[-1] is Ellipsis else args
        require(len(hints) == len(value), f"{path}={shown(value)}: expected {len(hints)} values, got {len(value)}")
        return tuple(checked(h, v, f"{path}[{i}]") for i, (h, v) in enumerate(zip(hints, value, strict=True)))
    elif origin is dict and isinstance(value, dict):
        key, content = args
        return {
            checked(key, k, f"a key of {path}"): checked(content, v, f"{path}[{shown(k)}]") for k, v in value.items()
        }
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):
            if math.isfinite(value):
                return float(value)
        raise ValueError(f"{path}={shown(value)}: expected a finite number")
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ValueError(f"{path}={shown(value)}: expected {_written(hint)}, got {type(value).__name__}")


def _written(hint: Any) -> str:
    """A type as one writes it: int | 'auto'."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_written, args))
    if origin is Literal:
        return " | ".join(map(repr, args))
    return "None" if hint is types.NoneType else hint.__name__ if isinstance(hint, type) and not origin else str(hint)


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known word, if there is one."""
    close = nearest(value, [k for k in known if isinstance(k, str)], 1) if isinstance(value, str) else []
    return f"; did you mean {close[0]}?" if close else ""


def parse_json(text: str | bytes, max_items: int = MAX_JSON_ITEMS) -> Any:
    """The value of JSON that anyone may have written, text or UTF-8.

    ValueError for what is not JSON, is nested deeper than MAX_JSON_DEPTH, has more than `max_items` values, or holds
    half a character (a lone surrogate), which could not be printed or stored.
    """
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    if text.count(",") + text.count("[") + text.count("{") > max_items:
        raise ValueError(f"JSON of more than {max_items:,} values")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"JSON nested deeper than {MAX_JSON_DEPTH} levels") from None
    level, depth = [value], 0
    while level := [v for v in level if isinstance(v, dict | list)]:
        level, depth = [c for v in level for c in (v.values() if isinstance(v, dict) else v)], depth + 1
        require(depth <= MAX_JSON_DEPTH, f"JSON nested deeper than {MAX_JSON_DEPTH} levels")
    if "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError
    return value


def to_json(config: Any) -> dict[str, Any]:
    """A config as plain JSON values (tuples become lists)."""
    return (config.tag() if isinstance(config, Config) else {}) | {
        f.name: to_json(v) if dataclasses.is_dataclass(v) else list(v) if isinstance(v, tuple) else v
        for f in dataclasses.fields(config)
        for v in [getattr(config, f.name)]
    }


def from_json(cls: type[T], values: Any, where: str = "") -> T:
    """The config that `to_json` wrote. ValueError for a wrong value, and an unknown field with the nearest name."""
    require(isinstance(values, dict), f"{where or cls.__name__}: expected an object, got {type(values).__name__}")
    if issubclass(cls, Config):
        cls, values = cls.untagged(values)
    hints, fields = field_types(cls), {}
    for name, value in values.items():
        path = f"{where}.{name}" if where else name
        if name not in hints:
            raise ValueError(f"{cls.__name__} has no field {shown(path)}{did_you_mean(name, hints)}")
        fields[name] = checked(hints[name], value, path)
    for f in dataclasses.fields(typing.cast(Any, cls)):
        optional = f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        require(optional or f.name in fields, f"{where or cls.__name__}: the field {f.name!r} is missing")
    return cls(**fields)
