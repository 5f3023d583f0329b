"""What an operation on images is: a function of images and plain arguments that checks its arguments first.

The images are the parameters before `*`, the first of which is the one worked on; the others come from further sources
of the case. Everything after `*` is a number, a word or a list of these, as a configuration file can hold it, and its
annotation says which values are allowed. `fusion_jax.data.images.pipeline` asks the same annotations before any image
is read.
"""

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeVar

__all__ = [
    "Bounds",
    "Count",
    "Index",
    "NonNegative",
    "Percent",
    "Positive",
    "arguments",
    "check_arguments",
    "expected",
    "operation",
]

P = ParamSpec("P")
R = TypeVar("R")


class Bounds(NamedTuple):
    """Numbers that an annotated argument may take; all finite ones by default.

    Attributes:
      least: smallest value allowed.
      most: largest value allowed.
      above: every value must be larger than this.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf

    def hold(self, value: float) -> bool:
        """Whether the value is allowed."""
        return self.least <= value <= self.most and value > self.above

    def __str__(self) -> str:
        words = [f"above {self.above:g}" if self.above > -math.inf else "", self._ends()]
        return " ".join(word for word in words if word)

    def _ends(self) -> str:
        if self.least > -math.inf and self.most < math.inf:
            return f"from {self.least:g} to {self.most:g}"
        if self.least > -math.inf:
            return f"of at least {self.least:g}"
        return f"of at most {self.most:g}" if self.most < math.inf else ""


Positive = Annotated[float, Bounds(above=0)]
NonNegative = Annotated[float, Bounds(least=0)]
Percent = Annotated[float, Bounds(least=0, most=100)]
Count = Annotated[int, Bounds(least=1)]
Index = Annotated[int, Bounds(least=0)]


def operation(function: Callable[P, R]) -> Callable[P, R]:
    """Check the plain arguments of a function on images before it runs.

    Example:
      >>> @operation
      ... def scale(image, *, by: Positive):
      ...     return image * by
      >>> scale(2.0, by=-1.0)
      Traceback (most recent call last):
      ...
      ValueError: scale: by is -1.0; expected a number above 0.
    """

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        plain = arguments(function)
        check_arguments(function, {name: value for name, value in kwargs.items() if name in plain})
        return function(*args, **kwargs)

    return checked


def arguments(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Plain arguments of an operation: the parameters after `*`."""
    parameters = inspect.signature(function).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuse plain arguments that an operation cannot use.

    Where an operation has both `low` and `high`, the first must be smaller.

    Args:
      function: the operation.
      given: name to value of those that were given; lists are welcome for tuples.

    Raises:
      TypeError: an argument is of another type than its annotation.
      ValueError: an argument is out of bounds or none of the words allowed, or `low` is not below `high`.
    """
    parameters, annotations = arguments(function), _annotations(function)
    name = getattr(function, "__name__", "operation")
    for argument, value in given.items():
        annotation = annotations.get(argument, Any)
        if not _fits(value, annotation):
            error = ValueError if _fits(value, annotation, kind_only=True) else TypeError
            raise error(f"{name}: {argument} is {value!r}; expected {_words(annotation)}.")
    ends = {key: given.get(key, parameters[key].default) for key in ("low", "high") if key in parameters}
    if len(ends) == 2 and inspect.Parameter.empty not in ends.values() and not ends["low"] < ends["high"]:
        raise ValueError(f"{name}: low is {ends['low']!r} and high is {ends['high']!r}; expected low below high.")


def expected(function: Callable[..., Any], argument: str) -> str:
    """What a plain argument of an operation may be, in words.

    Example:
      >>> def scale(image, *, by: Positive): ...
      >>> expected(scale, "by")
      'a number above 0'
    """
    return _words(_annotations(function).get(argument, Any))


@functools.cache
def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(function, include_extras=True)


def _fits(value: Any, annotation: Any, *, kind_only: bool = False) -> bool:
    """Whether a value is as annotated; with `kind_only`, bounds and words do not matter."""
    if annotation is Any:
        return True
    if annotation is None or annotation is types.NoneType:
        return value is None
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        base, *bounds = inner
        return _fits(value, base, kind_only=kind_only) and (kind_only or all(bound.hold(value) for bound in bounds))
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice, kind_only=kind_only) for choice in inner)
    if origin is Literal:
        return type(value) in map(type, inner) and (kind_only or value in inner)
    if origin is tuple:
        items = isinstance(value, list | tuple) and (kind_only or len(value) > 0)
        return items and all(_fits(item, inner[0], kind_only=kind_only) for item in value)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and (kind_only or math.isfinite(value))
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, annotation)


def _words(annotation: Any) -> str:
    """An annotation as a person would say it."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        base, *bounds = inner
        return " ".join([_words(base), *map(str, bounds)])
    if origin in (typing.Union, types.UnionType):
        choices = [choice for choice in inner if choice is not types.NoneType]
        lists = [choice for choice in choices if typing.get_args(choice)[:1] == (choices[0],)]
        return " or ".join(
            [*(_words(choice) for choice in choices if choice not in lists), *["a list of these"] * len(lists)]
        )
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin is tuple:
        return f"a list, each {_words(inner[0])}"
    plain = {Any: "a value", float: "a number", int: "a whole number", str: "text", bool: "true or false"}
    return plain.get(annotation, str(annotation))
