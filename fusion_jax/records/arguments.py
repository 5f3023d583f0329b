"""Arguments of recipes as JSON: read strictly into frozen dataclasses, and back."""

import dataclasses
import difflib
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

__all__ = ["as_json", "close_to", "from_json"]

Made = TypeVar("Made")


def from_json(
    made: type[Made], value: Mapping[str, Any] | None, *, where: str, fixed: Mapping[str, Any] | None = None
) -> Made:
    """A frozen dataclass from a JSON object: unknown keys, unknown choices and wrong types are refused.

    Args:
      made: the dataclass. Its fields are numbers, texts, truth values, `Literal` choices, None, tuples (JSON lists),
        mappings from text (JSON objects), or unions of these.
      value: the object; fields that it does not name keep their defaults.
      where: what the object is, for messages.
      fixed: values of fields that are no arguments.

    Raises:
      ValueError: an unknown key or choice; the message names the close ones.
      TypeError: a value of another type, or a field that has to be named and is not.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class Settings:
      ...     epochs: int = 60
      >>> from_json(Settings, {"epochs": 5}, where="settings")
      Settings(epochs=5)
    """
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{where}: arguments are {value!r}; expected an object of names and values.")
    value = dict(value or {})
    fixed = fixed or {}
    fields = [field.name for field in dataclasses.fields(cast("Any", made)) if field.name not in fixed]
    for key in value:
        if key not in fields:
            raise ValueError(f"{where}: no argument {key!r}; {close_to(key, fields)} Fix or remove it.")
    hints = get_type_hints(made)
    arguments = {key: _parsed(item, hints[key], f"{where}: {key}") for key, item in value.items()}
    return made(**fixed, **arguments)


def as_json(value: Any) -> Any:
    """A value of an argument as JSON holds it.

    Example:
      >>> as_json({"widths": (4, 4)})
      {'widths': [4, 4]}
    """
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list | tuple) else value


def close_to(word: object, choices: Any) -> str:
    """A hint at what was meant.

    Example:
      >>> close_to("epoch", ["epochs", "patience"])
      "did you mean 'epochs'?"
    """
    names = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(word), names, n=3)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"there is {', '.join(map(repr, names)) or 'none'}."


def _parsed(value: Any, hint: Any, where: str) -> Any:
    """`value` as `hint` wants it."""
    origin, inside = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in inside):
            raise ValueError(f"{where} is {value!r}; {close_to(value, inside)}")
        return value
    if origin in (Union, types.UnionType):
        return _one_of(value, inside, where)
    if hint is type(None):
        if value is None:
            return None
        raise TypeError(f"{where} is {value!r}; expected null.")
    if hint is bool:
        return _checked(value, isinstance(value, bool), "true or false", where)
    if hint is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return _checked(value, whole, "a whole number", where)
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return _checked(value, number, "a number", where)
    if hint is str:
        return _checked(value, isinstance(value, str), "text", where)
    if origin is tuple:
        _checked(value, isinstance(value, list | tuple), "a list", where)
        return tuple(_parsed(item, inside[0], f"{where}[{number}]") for number, item in enumerate(value))
    if hint is Mapping or origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        _checked(value, isinstance(value, Mapping), "an object", where)
        item_hint = inside[1] if inside else Any
        return {str(key): _parsed(item, item_hint, f"{where}[{key!r}]") for key, item in value.items()}
    raise TypeError(f"{where}: an argument of type {hint} cannot be read from JSON.")


def _one_of(value: Any, choices: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    problems: list[Exception] = []
    for choice in choices:
        if choice is type(None):
            continue
        try:
            return _parsed(value, choice, where)
        except (TypeError, ValueError) as error:
            problems.append(error)
    # Of a value of the right type and the wrong content, the content is the news.
    raise next((error for error in problems if isinstance(error, ValueError)), problems[0])


def _checked(value: Any, right: bool, wanted: str, where: str) -> Any:
    if not right:
        raise TypeError(f"{where} is {value!r}; expected {wanted}.")
    return value
