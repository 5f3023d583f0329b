r"""Convolution in one, two and three dimensions, quick on CPU too, with exact derivatives of every order.

.. math:: y_{o, k} = \sum_{t, c} x_{o s + t d - p, c} \, w_{t, c, k}

for outputs :math:`o`, taps :math:`t`, stride :math:`s`, dilation :math:`d` and padding :math:`p`; a cross-correlation,
as everywhere in deep learning.

The convolution, its input gradient and its kernel gradient are three primitives, each bilinear, and each the transpose
of the other two: derivatives of any order, forward and reverse, are these three again, and every one of them is
computed in the quickest way that is known. `CHOICES` is the table of those ways. They are chosen when a program is
lowered for a platform, so that one traced or exported function runs well on all of them.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from fusion_jax.arrays import Array, ArrayLike, Float, as_floats
from fusion_jax.ops.conv_formulations import FORMULATIONS, Geometry, swap_channels
from fusion_jax.ops.windows import Padding, PerAxis, padding_pairs, per_axis

__all__ = ["CHOICES", "Choice", "Method", "choose", "conv", "conv_transpose"]

Method = Literal["auto", "direct", "phases", "matmul", "narrow", "shift", "planes", "folded"]


Role = Literal["forward", "input_gradient", "kernel_gradient"]


class Choice(NamedTuple):
    """A row of the table of formulations.

    Attributes:
      when: whether the row holds for a role of a convolution of so many input channels and outputs.
      method: the formulation, a key of `FORMULATIONS`.
      reason: what was measured: milliseconds of XLA's own way and of this one, each alone in a program (2 cores after
        `fusion_jax.tune_cpu`, float32, jax 0.10.2). `benchmarks/conv.py` measures whole passes.
    """

    when: Callable[[Role, Geometry, int, int], bool]
    method: Method
    reason: str


CHOICES = (
    Choice(
        lambda role, geometry, channels, outputs: (
            set(geometry.window) == {1}
            and role != "forward"
            and (geometry.axes == 3 or role == "kernel_gradient" or max(geometry.strides) > 1)
        ),
        "matmul",
        "1 x 1 is a matrix product: 256 to 512 channels at 8 x 56 x 56, stride 2, input 15 to 4.5, kernel 7.8 to 5.2; "
        "16 to 64 at 4 x 128 x 128, kernel 3.3 to 1.8, and XLA turns the input round with all that it is computed from",
    ),
    Choice(
        lambda role, geometry, channels, outputs: (
            geometry.axes == 1 and role == "kernel_gradient" and geometry.groups in (1, channels)
        ),
        "direct",
        "depthwise, 7 taps, 32 channels at 4 x 8192: 4.7, and 46 by shifting, which is made for rows and columns",
    ),
    Choice(
        lambda role, geometry, channels, outputs: geometry.groups == channels > 1,
        "shift",
        "XLA multiplies one number at a time: 3 x 3 x 3, 16 channels at 56 x 56 x 72, forward 630 to 1.8",
    ),
    Choice(
        lambda role, geometry, channels, outputs: geometry.groups > 1,
        "matmul",
        "32 groups of 128 channels at 8 x 28 x 28, kernel gradient 2,466 to 3.2",
    ),
    Choice(
        lambda role, geometry, channels, outputs: geometry.axes == 3 and role == "kernel_gradient",
        "planes",
        "3 x 3 x 3, 16 channels at 56 x 56 x 72: 29, and 44 folded; 7 x 7 x 7 stem, stride 2: 2.4, and 2.6 folded",
    ),
    Choice(
        lambda role, geometry, channels, outputs: geometry.axes == 3,
        "folded",
        "3 x 3 x 3, 16 channels at 56 x 56 x 72: forward 105 to 18 (planes 18), input gradient 10 (planes 16)",
    ),
    Choice(
        lambda role, geometry, channels, outputs: (
            geometry.axes == 2
            and role != "input_gradient"
            and set(geometry.strides) == {1}
            and math.prod(geometry.window) > 1
            and math.prod(geometry.window) * outputs <= 2 * channels
        ),
        "narrow",
        "3 x 3, 64 to 3 channels at 4 x 512 x 512: forward 101 to 27, kernel 175 to 43; 256 to 32: 18 to 12, 17 to 13",
    ),
    Choice(
        lambda role, geometry, channels, outputs: (
            role == "input_gradient" and max(geometry.strides) > 1 and channels >= 8
        ),
        "phases",
        "5 x 5, 16 to 32 channels at 4 x 112 x 112, stride 2: 3.0 to 1.4; with 3 channels 5.4 against 9.0",
    ),
    Choice(
        lambda role, geometry, channels, outputs: True,
        "direct",
        "dense 1-D and 2-D: 3 x 3, 64 channels at 8 x 56 x 56, dilation 2, forward 7.9, and 13 by matrix products",
    ),
)
"""Formulations on CPU; the first row that holds is taken. Accelerators take "direct" always."""


def choose(role: Role, geometry: Geometry, channels: int, outputs: int, platform: str) -> Method:
    """The formulation for a convolution, or a gradient of one, on `platform`: "cpu", "cuda", "rocm" or "tpu"."""
    if platform != "cpu":
        return "direct"
    return next(choice.method for choice in CHOICES if choice.when(role, geometry, channels, outputs))


def conv(
    x: Float[ArrayLike, "b *sizes c"],
    kernel: Float[ArrayLike, "*window _ out"],
    *,
    strides: PerAxis = 1,
    padding: Padding = "SAME",
    dilation: PerAxis = 1,
    groups: int = 1,
    method: Method = "auto",
    precision: lax.PrecisionLike = None,
) -> Float[Array, "b *outputs out"]:
    r"""Convolution over 1, 2 or 3 spatial axes, channels last.

    .. math:: y_{o, k} = \sum_{t, c} x_{o s + t d - p, c} \, w_{t, c, k}

    Exact derivatives of every order, in any mixture of `jvp` and `grad`; `vmap` over inputs, kernels or both.

    Args:
      x: input, `(b, *sizes, c)`, with 1, 2 or 3 spatial sizes.
      kernel: `(*window, c // groups, out)`, the layout of `flax.linen.Conv`; of the dtype of `x`.
      strides: input positions between two outputs; a number, or one an axis.
      padding: "SAME" for ceil(size / stride) outputs, "VALID" for none, or zeros before and after: a number, one an
        axis, or a pair an axis.
      dilation: input positions between two taps.
      groups: channels and outputs are cut into so many groups that do not see each other; `c` for depthwise.
      method: "auto" takes what was measured to be quickest on the platform (`CHOICES`). Others force a formulation:
        "direct" (XLA's), "phases" (the same, strided input gradients apart), "matmul" (windows in blocks), "narrow"
        (strides of 1, one group), "shift" (depthwise only), "planes" and "folded" (3 axes only).
      precision: precision of products on accelerators, as in `jax.lax`; "shift" always multiplies in full.

    Returns:
      `(b, *outputs, out)`, dtype of `x`. Half precision is computed in single precision on CPU.

    Raises:
      ValueError: shapes, groups or a method that do not fit.
      TypeError: dtypes that differ or are not floating.

    Example:
      >>> x = jnp.arange(4.0).reshape(1, 4, 1)
      >>> conv(x, jnp.ones((3, 1, 1))).ravel().tolist()
      [1.0, 3.0, 6.0, 5.0]
    """
    x, kernel = _checked(x, kernel, groups, method, "conv")
    sizes, window = x.shape[1:-1], kernel.shape[:-2]
    axes = len(sizes)
    stride, step = per_axis(strides, axes, "strides"), per_axis(dilation, axes, "dilation")
    pads = padding_pairs(padding, sizes, window, stride, step)
    geometry = Geometry(sizes, window, stride, step, pads, groups, precision)
    _check_method(method, geometry, x.shape[-1])
    return _conv.bind(*_alike(x, kernel), geometry=geometry, method=method)


def conv_transpose(
    x: Float[ArrayLike, "b *sizes c"],
    kernel: Float[ArrayLike, "*window _ out"],
    *,
    strides: PerAxis = 1,
    padding: Padding = "SAME",
    dilation: PerAxis = 1,
    groups: int = 1,
    method: Method = "auto",
    precision: lax.PrecisionLike = None,
) -> Float[Array, "b *outputs out"]:
    r"""Transposed convolution: a convolution of `x` with `strides - 1` zeros between its positions.

    The values of `jax.lax.conv_transpose` and `flax.linen.ConvTranspose`. PyTorch's `ConvTranspose` has the kernel
    mirrored along every spatial axis, and its padding `p` is `dilation * (window - 1) - p` here.

    Args:
      x: input, `(b, *sizes, c)`, with 1, 2 or 3 spatial sizes.
      kernel: `(*window, c // groups, out)`; of the dtype of `x`.
      strides: how many times finer the output is; a number, or one an axis.
      padding: "SAME" for size * stride outputs, "VALID" for every output that some input reaches, or zeros before and
        after the spread input.
      dilation: output positions between two taps.
      groups: groups of channels that do not see each other.
      method: as for `conv`.
      precision: as for `conv`.

    Returns:
      `(b, *outputs, out)`, dtype of `x`.

    Raises:
      ValueError: shapes, groups or a method that do not fit.
      TypeError: dtypes that differ or are not floating.

    Example:
      >>> x = jnp.asarray([1.0, 10.0]).reshape(1, 2, 1)
      >>> conv_transpose(x, jnp.ones((2, 1, 1)), strides=2).ravel().tolist()
      [1.0, 1.0, 10.0, 10.0]
    """
    x, kernel = _checked(x, kernel, groups, method, "conv_transpose")
    sizes, window = x.shape[1:-1], kernel.shape[:-2]
    axes = len(sizes)
    stride, step = per_axis(strides, axes, "strides"), per_axis(dilation, axes, "dilation")
    spans = [(width - 1) * d + 1 for width, d in zip(window, step, strict=True)]
    around = _transpose_padding(padding, sizes, window, stride, spans)
    # The convolution whose input gradient this is: its output is `x`.
    finer = tuple(
        max(0, (size - 1) * s + 1 + before + after - span + 1) if size else 0
        for size, s, span, (before, after) in zip(sizes, stride, spans, around, strict=True)
    )
    pads = tuple(
        (span - 1 - before, (size - 1) * s + span - fine - (span - 1 - before))
        for size, s, span, fine, (before, _) in zip(sizes, stride, spans, finer, around, strict=True)
    )
    geometry = Geometry(finer, window, stride, step, pads, groups, precision)
    _check_method(method, geometry, kernel.shape[-1])
    mirrored = swap_channels(jnp.flip(kernel, tuple(range(axes))), groups)
    return _input_gradient.bind(*_alike(x, mirrored), geometry=geometry, method=method)


def _transpose_padding(
    padding: Padding, sizes: Sequence[int], window: Sequence[int], strides: Sequence[int], spans: Sequence[int]
) -> list[tuple[int, int]]:
    """Zeros around the spread input; the rules of `jax.lax.conv_transpose`."""
    if padding == "SAME":
        totals = [span + s - 2 for span, s in zip(spans, strides, strict=True)]
        befores = [
            span - 1 if s > span - 1 else -(-total // 2) for span, s, total in zip(spans, strides, totals, strict=True)
        ]
        return [(before, total - before) for before, total in zip(befores, totals, strict=True)]
    if padding == "VALID":
        return [(span - 1, max(s, span) - 1) for span, s in zip(spans, strides, strict=True)]
    return list(padding_pairs(padding, sizes, window, strides, (1,) * len(sizes)))


def _checked(x: ArrayLike, kernel: ArrayLike, groups: int, method: str, name: str) -> tuple[Array, Array]:
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    if x.ndim not in (3, 4, 5):
        raise ValueError(f"{name}: x has shape {x.shape}; expected (b, *sizes, c) with 1, 2 or 3 spatial sizes.")
    if kernel.ndim != x.ndim:
        raise ValueError(
            f"{name}: kernel has shape {kernel.shape} and x {x.shape}; expected (*window, c // groups, out) with "
            f"{x.ndim - 2} window sizes."
        )
    if min(kernel.shape[:-2]) < 1:
        raise ValueError(f"{name}: kernel has shape {kernel.shape}; every window size must be at least 1.")
    if groups < 1 or x.shape[-1] % groups or kernel.shape[-1] % groups:
        raise ValueError(
            f"{name}: {x.shape[-1]} channels and {kernel.shape[-1]} outputs do not divide into groups={groups}."
        )
    if kernel.shape[-2] * groups != x.shape[-1]:
        raise ValueError(
            f"{name}: kernel of shape {kernel.shape} expects {kernel.shape[-2]} channels in each of {groups} groups; "
            f"x of shape {x.shape} has {x.shape[-1]} channels in all."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype != kernel.dtype:
        raise TypeError(f"{name}: x is {x.dtype} and kernel {kernel.dtype}; expected one floating dtype for both.")
    if method != "auto" and method not in FORMULATIONS:
        raise ValueError(f"{name}: method is {method!r}; expected 'auto' or one of {', '.join(sorted(FORMULATIONS))}.")
    return x, kernel


def _check_method(method: str, geometry: Geometry, channels: int) -> None:
    if method in ("planes", "folded") and geometry.axes != 3:
        raise ValueError(f"method {method!r} needs 3 spatial axes, not {geometry.axes}.")
    if method in ("folded", "narrow") and geometry.groups != 1:
        raise ValueError(f"method {method!r} needs groups=1, not {geometry.groups}.")
    if method == "narrow" and set(geometry.strides) != {1}:
        raise ValueError(f"method 'narrow' needs strides of 1, not {geometry.strides}.")
    if method == "shift" and geometry.groups != channels:
        raise ValueError(f"method 'shift' needs as many groups as channels, {channels}, not {geometry.groups}.")


def _alike(*arrays: Array) -> list[Array]:
    """Inside `jax.shard_map`: every array varies over the devices that any of them varies over."""
    if any(axis is not None for a in arrays for axis in jax.typeof(a).sharding.spec):
        raise ValueError(
            "convolution over a mesh with explicit axes is not supported; make the mesh with "
            "axis_types=(AxisType.Auto,) or call it inside jax.shard_map or jax.sharding.auto_axes."
        )
    varying = [jax.typeof(a).manual_axis_type.varying for a in arrays]
    everywhere = frozenset().union(*varying)
    return [
        lax.pcast(a, tuple(sorted(everywhere - axes)), to="varying") if everywhere - axes else a
        for a, axes in zip(arrays, varying, strict=True)
    ]


# Three bilinear primitives, each the transpose of the other two.
#
# Operands: `x` is `(n, *sizes, c)`, `y` is `(n, *outputs, o)`, `w` is `(*window, c // groups, o)`.


_Shape = tuple[Any, ...]
"""Sizes; the number of cases may be a symbol while a program is exported."""


def _conv_shape(x: _Shape, w: _Shape, geometry: Geometry) -> _Shape:
    return (x[0], *geometry.outputs, w[-1])


def _input_gradient_shape(y: _Shape, w: _Shape, geometry: Geometry) -> _Shape:
    return (y[0], *geometry.sizes, w[-2] * geometry.groups)


def _kernel_gradient_shape(x: _Shape, y: _Shape, geometry: Geometry) -> _Shape:
    return (*geometry.window, x[-1] // geometry.groups, y[-1])


_SHAPES = {
    "forward": _conv_shape,
    "input_gradient": _input_gradient_shape,
    "kernel_gradient": _kernel_gradient_shape,
}


def _compute(a: Array, b: Array, *, role: Role, platform: str, geometry: Geometry, method: Method) -> Array:
    """What a primitive lowers to on one platform."""
    shape = _SHAPES[role](a.shape, b.shape, geometry)
    if 0 in (*shape, *a.shape, *b.shape):
        return jnp.zeros(shape, a.dtype)
    # The second operand is the kernel or has its outputs: they are the last axis of either.
    channels = b.shape[-2] * geometry.groups if role == "input_gradient" else a.shape[-1]
    if method == "auto":
        method = choose(role, geometry, channels, b.shape[-1], platform)
    function = getattr(FORMULATIONS[method], role)
    if platform == "cpu" and method != "direct" and a.dtype.itemsize < 4:
        # Sums of many terms in half precision lose digits, and CPUs have no quick way to form them.
        return function(*as_floats(a, b), geometry).astype(a.dtype)
    return function(a, b, geometry)


def _primitive(name: str, role: Role) -> Primitive:
    primitive = Primitive(name)

    @lru_cache(maxsize=1024)
    def compiled(geometry: Geometry, method: Method) -> Callable[[Array, Array], Array]:
        return jax.jit(partial(primitive.bind, geometry=geometry, method=method))

    @primitive.def_impl
    def _(a: Any, b: Any, *, geometry: Geometry, method: Method) -> Array:
        return compiled(geometry, method)(a, b)

    @primitive.def_abstract_eval
    def _(a: ShapedArray, b: ShapedArray, *, geometry: Geometry, method: Method) -> ShapedArray:
        shape = _SHAPES[role](a.shape, b.shape, geometry)
        sharding = a.sharding.update(spec=jax.sharding.PartitionSpec(*(None for _ in shape)))
        return a.update(shape=shape, weak_type=False, sharding=sharding)

    # The default rule serves every accelerator.
    for platform in ("cpu", None):
        lowered = mlir.lower_fun(
            partial(_compute, role=role, platform=platform or "accelerator"), multiple_results=False
        )
        mlir.register_lowering(primitive, lowered, platform=platform)
    return primitive


_conv = _primitive("fusion_jax_conv", "forward")
_input_gradient = _primitive("fusion_jax_conv_input_gradient", "input_gradient")
_kernel_gradient = _primitive("fusion_jax_conv_kernel_gradient", "kernel_gradient")

ad.defbilinear(
    _conv,
    lambda y, x, w, **how: _input_gradient.bind(y, w, **how),
    lambda y, x, w, **how: _kernel_gradient.bind(x, y, **how),
)
ad.defbilinear(
    _input_gradient,
    lambda x, y, w, **how: _conv.bind(x, w, **how),
    lambda x, y, w, **how: _kernel_gradient.bind(x, y, **how),
)
ad.defbilinear(
    _kernel_gradient,
    lambda w, x, y, **how: _input_gradient.bind(y, w, **how),
    lambda w, x, y, **how: _conv.bind(x, w, **how),
)


# Mapping over a new axis v: more cases where one operand of cases is mapped, more channels or outputs where the other
# is, more groups where both are.


def _fold(array: Array, axis: int) -> Array:
    """Axis `v` in front, then merged with the cases."""
    array = jnp.moveaxis(array, axis, 0)
    return array.reshape(-1, *array.shape[2:])


def _unfold(array: Array, v: int) -> Array:
    """Inverse of `_fold`; `v` in front."""
    return array.reshape(v, -1, *array.shape[1:])


def _channels(array: Array, axis: int, groups: int) -> Array:
    """Axis `v` merged into the last axis: order `(groups, v, rest)`."""
    array = jnp.moveaxis(array, axis, -2)
    *lead, v, last = array.shape
    array = array.reshape(*lead, v, groups, last // groups)
    return array.swapaxes(-2, -3).reshape(*lead, v * last)


def _split_channels(array: Array, v: int, groups: int) -> Array:
    """Inverse of `_channels`; `v` in front."""
    *lead, merged = array.shape
    array = array.reshape(*lead, groups, v, merged // (groups * v))
    return jnp.moveaxis(array, -2, 0).reshape(v, *lead, merged // v)


def _inputs(kernel: Array, axis: int) -> Array:
    """Axis `v` of a kernel merged into its axis of inputs, `v` first."""
    kernel = jnp.moveaxis(kernel, axis, -3)
    return kernel.reshape(*kernel.shape[:-3], -1, kernel.shape[-1])


class _How(TypedDict):
    geometry: Geometry
    method: Method


_Axes = Sequence[int | None]


_GROUPED: dict[Method, Method] = {"folded": "planes", "narrow": "matmul"}


def _both(primitive: Primitive, operands: Sequence[Array], axes: _Axes, v: int, how: _How) -> Array:
    """Both operands mapped, or taken as if they were: `v` times as many groups."""
    merged = [
        _channels(jnp.broadcast_to(a, (v, *a.shape)) if axis is None else a, axis or 0, 1)
        for a, axis in zip(operands, axes, strict=True)
    ]
    geometry = how["geometry"]
    # Of the ways that take one group alone, the nearest that takes several.
    method = _GROUPED.get(how["method"], how["method"])
    result = primitive.bind(*merged, geometry=geometry._replace(groups=geometry.groups * v), method=method)
    return _split_channels(result, v, 1)


def _conv_batch(operands: Sequence[Array], axes: _Axes, v: int, how: _How) -> Array:
    (x, w), (x_axis, w_axis), groups = operands, axes, how["geometry"].groups
    if w_axis is None and x_axis is not None:
        return _unfold(_conv.bind(_fold(x, x_axis), w, **how), v)
    if x_axis is None and w_axis is not None:
        return _split_channels(_conv.bind(x, _channels(w, w_axis, groups), **how), v, groups)
    return _both(_conv, operands, axes, v, how)


def _input_gradient_batch(operands: Sequence[Array], axes: _Axes, v: int, how: _How) -> Array:
    (y, w), (y_axis, w_axis) = operands, axes
    if w_axis is None and y_axis is not None:
        return _unfold(_input_gradient.bind(_fold(y, y_axis), w, **how), v)
    if y_axis is None and w_axis is not None and _dense(how):
        return _split_channels(_input_gradient.bind(y, _inputs(w, w_axis), **how), v, 1)
    return _both(_input_gradient, operands, axes, v, how)


def _kernel_gradient_batch(operands: Sequence[Array], axes: _Axes, v: int, how: _How) -> Array:
    (x, y), (x_axis, y_axis), groups = operands, axes, how["geometry"].groups
    if x_axis is None and y_axis is not None:
        return _split_channels(_kernel_gradient.bind(x, _channels(y, y_axis, groups), **how), v, groups)
    if y_axis is None and x_axis is not None and _dense(how):
        w = _kernel_gradient.bind(_channels(x, x_axis, 1), y, **how)
        return jnp.moveaxis(w.reshape(*w.shape[:-2], v, -1, w.shape[-1]), -3, 0)
    return _both(_kernel_gradient, operands, axes, v, how)


def _dense(how: _How) -> bool:
    """Whether a group may get more inputs; a depthwise convolution would no longer be one."""
    return how["geometry"].groups == 1 and how["method"] != "shift"


def _mapped(role: Role, rule: Callable[[Sequence[Array], _Axes, int, _How], Array]) -> Callable[..., tuple[Array, int]]:
    def mapped(operands: Sequence[Any], axes: _Axes, *, geometry: Geometry, method: Method) -> tuple[Any, int]:
        sizes = [
            [size for place, size in enumerate(a.shape) if place != axis]
            for a, axis in zip(operands, axes, strict=True)
        ]
        v = next(a.shape[axis] for a, axis in zip(operands, axes, strict=True) if axis is not None)
        shape = (v, *_SHAPES[role](tuple(sizes[0]), tuple(sizes[1]), geometry))
        if 0 in (*shape, *sizes[0], *sizes[1]):  # nothing below divides by such a size
            return jnp.zeros(shape, operands[0].dtype), 0
        return rule(operands, axes, v, {"geometry": geometry, "method": method}), 0

    return mapped


batching.primitive_batchers[_conv] = _mapped("forward", _conv_batch)
batching.primitive_batchers[_input_gradient] = _mapped("input_gradient", _input_gradient_batch)
batching.primitive_batchers[_kernel_gradient] = _mapped("kernel_gradient", _kernel_gradient_batch)
