"""Geometry of sliding windows, shared by convolution and pooling: what a user may write, made explicit and checked."""

from collections.abc import Iterable, Sequence
from typing import Literal

__all__ = ["Padding", "PerAxis", "output_sizes", "padding_pairs", "per_axis", "windows_inside"]

PerAxis = int | Sequence[int]
"""One number for every spatial axis, or one for each."""

Padding = Literal["SAME", "VALID"] | int | Sequence[int | Sequence[int]]
"""A rule, or positions to add before and after every axis: one number, one an axis, or a pair an axis."""


def per_axis(value: PerAxis, axes: int, name: str, *, smallest: int = 1) -> tuple[int, ...]:
    """`value` as one integer for each of `axes` spatial axes.

    Raises:
      ValueError: wrong number of values, or a value below `smallest`; the message names `name`.
      TypeError: a value that is no integer.

    Example:
      >>> per_axis(2, 3, "strides")
      (2, 2, 2)
    """
    values = tuple(value) if isinstance(value, Iterable) else (value,) * axes
    for single in values:
        if isinstance(single, bool | Iterable) or not hasattr(single, "__index__"):
            raise TypeError(f"{name} is {value!r}; expected an integer, or one for each of {axes} spatial axes.")
    values = tuple(single.__index__() for single in values)
    if len(values) != axes:
        raise ValueError(f"{name} has {len(values)} values for {axes} spatial axes; give one number, or {axes}.")
    if any(single < smallest for single in values):
        raise ValueError(f"{name} is {value!r}; every value must be at least {smallest}.")
    return values


def padding_pairs(
    padding: Padding, sizes: Sequence[int], window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Positions added before and after every axis.

    "SAME" gives ceil(size / stride) windows, with the odd position after, as XLA and TensorFlow do; "VALID" adds none.
    Explicit numbers are not negative: cropping is slicing.

    Raises:
      ValueError: an unknown rule, a wrong number of values, a negative value.

    Example:
      >>> padding_pairs("SAME", (8, 9), (3, 3), (2, 2), (1, 1))
      ((0, 1), (1, 1))
    """
    axes = len(sizes)
    if isinstance(padding, str):
        if padding == "VALID":
            return ((0, 0),) * axes
        if padding == "SAME":
            totals = (
                max((-(-size // stride) - 1) * stride + (width - 1) * step + 1 - size, 0)
                for size, width, stride, step in zip(sizes, window, strides, dilation, strict=True)
            )
            return tuple((total // 2, total - total // 2) for total in totals)
        raise ValueError(f"padding is {padding!r}; expected 'SAME', 'VALID' or numbers.")
    sides = tuple(padding) if isinstance(padding, Iterable) else (padding,) * axes
    if len(sides) != axes:
        raise ValueError(f"padding has {len(sides)} values for {axes} spatial axes; give one number, or {axes}.")
    for pad in sides:
        if isinstance(pad, Iterable) and len(tuple(pad)) != 2:
            raise ValueError(f"padding holds {pad!r}; expected one number for both sides of an axis, or a pair.")
    pairs = [per_axis(pad, 2, "padding", smallest=0) for pad in sides]
    return tuple((before, after) for before, after in pairs)


def windows_inside(size: int, width: int, stride: int, step: int = 1) -> int:
    """Windows of `width` taps, `step` apart, that fit into `size` positions, `stride` apart; 0 where none fits."""
    return max(0, (size - (width - 1) * step - 1) // stride + 1)


def output_sizes(
    sizes: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
    pairs: Sequence[tuple[int, int]],
) -> tuple[int, ...]:
    """Windows along every axis after padding.

    Example:
      >>> output_sizes((8, 9), (3, 3), (2, 2), (1, 1), ((0, 1), (1, 1)))
      (4, 5)
    """
    return tuple(
        windows_inside(size + before + after, width, stride, step)
        for size, width, stride, step, (before, after) in zip(sizes, window, strides, dilation, pairs, strict=True)
    )
