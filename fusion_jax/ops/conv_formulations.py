r"""Ways to compute a convolution, its input gradient and its kernel gradient.

All three are values of one trilinear form of an input :math:`x`, a kernel :math:`w` and an output :math:`y`,

.. math:: T(x, w, y) = \sum_{o, t} y_o \, w_t \, x_{o s + t d - p},

with stride :math:`s`, dilation :math:`d` and padding :math:`p`; channels are summed over as well. Each of the three
functions of a `Formulation` leaves one argument of it out. Arrays are channels last: `x` is `(n, *sizes, c)`, `y` is
`(n, *outputs, o)`, `w` is `(*window, c // groups, o)`.

Why there are several ways: XLA has one loop for whatever its CPU library does not cover, which is 10 to 900 times
slower than the processor allows (`benchmarks/conv.py`). `fusion_jax.ops.conv` chooses.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fusion_jax.arrays import Array
from fusion_jax.ops.windows import output_sizes

__all__ = ["FORMULATIONS", "Formulation", "Geometry", "swap_channels"]

# Measured on 2 cores with 96 KiB of L1 and 32 MiB of shared L3: from 0.5 to 4 M values a block differ by 10 %.
BLOCK_VALUES = 2**21
FUSED_TAPS = 32  # terms of one expression; all 125 of a 5 x 5 x 5 kernel in one run 15 times slower
# Rows of a depthwise kernel gradient in one step: with fewer XLA builds a loop that is 4 times slower, and rows a power
# of two apart share one place in the cache.
ROWS = (18, 20, 22, 24, 26, 28, 30)


class Geometry(NamedTuple):
    """Everything about a convolution that is known before its values are; hashable.

    Attributes:
      sizes: spatial sizes of the input.
      window: spatial sizes of the kernel.
      strides: steps between two outputs, in positions of the input.
      dilation: steps between two taps, in positions of the input.
      pads: positions of zeros before and after every axis; negative ones crop.
      groups: groups of channels that do not see each other.
      precision: precision of products, as `jax.lax.Precision`; None follows JAX's configuration.
    """

    sizes: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    groups: int
    precision: lax.PrecisionLike = None

    @property
    def outputs(self) -> tuple[int, ...]:
        """Spatial sizes of the output."""
        return output_sizes(self.sizes, self.window, self.strides, self.dilation, self.pads)

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return len(self.sizes)

    def on(self, axes: slice) -> "Geometry":
        """The same on some of the spatial axes."""
        return self._replace(
            sizes=self.sizes[axes],
            window=self.window[axes],
            strides=self.strides[axes],
            dilation=self.dilation[axes],
            pads=self.pads[axes],
        )


class Formulation(NamedTuple):
    """One way to compute a convolution and both of its transposes.

    Attributes:
      forward: `(x, w, geometry) -> y`.
      input_gradient: `(y, w, geometry) -> x`.
      kernel_gradient: `(x, y, geometry) -> w`.
    """

    forward: Callable[[Array, Array, Geometry], Array]
    input_gradient: Callable[[Array, Array, Geometry], Array]
    kernel_gradient: Callable[[Array, Array, Geometry], Array]


def _zeros(shape: Sequence[Any], like: Array) -> Array:
    """Zeros that, inside `jax.shard_map`, vary over the same devices as `like`."""
    zeros, varying = jnp.zeros(shape, like.dtype), jax.typeof(like).manual_axis_type.varying
    return lax.pcast(zeros, tuple(sorted(varying)), to="varying") if varying else zeros


def _pad(x: Array, pads: Sequence[tuple[int, int]]) -> Array:
    """`x` with zeros around its spatial axes; negative numbers crop."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((lo, hi, 0) for lo, hi in pads), (0, 0, 0)])


def _taps(geometry: Geometry) -> Iterator[tuple[int, ...]]:
    return itertools.product(*map(range, geometry.window))


def _shifted(padded: Array, tap: Sequence[int], counts: Sequence[int], geometry: Geometry) -> Array:
    """What `tap` of the kernel meets at each of `counts` outputs."""
    starts = [t * d for t, d in zip(tap, geometry.dilation, strict=True)]
    stops = [a + (n - 1) * s + 1 for a, n, s in zip(starts, counts, geometry.strides, strict=True)]
    lead, channels = padded.shape[0], padded.shape[-1]
    return lax.slice(padded, (0, *starts, 0), (lead, *stops, channels), (1, *geometry.strides, 1))


# Direct: what XLA does, for accelerators and where nothing below is quicker.


def _direct(x: Array, w: Array, geometry: Geometry) -> Array:
    space = "DHW"[-geometry.axes :]
    if any(min(pads) < 0 for pads in geometry.pads):
        # XLA 0.10.2 on CPU reads beyond the input of a 2-D convolution whose padding is negative.
        x = _pad(x, [(min(lo, 0), min(hi, 0)) for lo, hi in geometry.pads])
    return lax.conv_general_dilated(
        x,
        w,
        geometry.strides,
        [(max(lo, 0), max(hi, 0)) for lo, hi in geometry.pads],
        rhs_dilation=geometry.dilation,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=geometry.groups,
        precision=geometry.precision,
    )


def _direct_input_gradient(y: Array, w: Array, geometry: Geometry) -> Array:
    channels = w.shape[-2] * geometry.groups
    x = _zeros((y.shape[0], *geometry.sizes, channels), y)
    [gradient] = jax.linear_transpose(lambda x: _direct(x, w, geometry), x)(y)
    return gradient


def _direct_kernel_gradient(x: Array, y: Array, geometry: Geometry) -> Array:
    w = _zeros((*geometry.window, x.shape[-1] // geometry.groups, y.shape[-1]), x)
    [gradient] = jax.linear_transpose(lambda w: _direct(x, w, geometry), w)(y)
    return gradient


# The input gradient from convolutions of stride 1, for any way to compute those.


def _by_phases(forward: Callable[[Array, Array, Geometry], Array], y: Array, w: Array, geometry: Geometry) -> Array:
    """Input gradient, one convolution of stride 1 for every phase of the stride.

    Input positions s m + p of one phase p meet the taps t with t d = p modulo s only, at outputs m - (t d - p) / s:
    the strided gradient never multiplies by the zeros between outputs, which is what XLA does on CPU.
    """
    w = swap_channels(w, geometry.groups)
    outputs, plans, crops = geometry.outputs, [], []
    for size, width, s, d, (lo, _), n in zip(
        geometry.sizes, geometry.window, geometry.strides, geometry.dilation, geometry.pads, outputs, strict=True
    ):
        first, last = lo // s, -(-(lo + size) // s)
        plans.append([_phase(p, width, s, d, n, first, last) for p in range(s)])
        crops.append((lo - first * s, (last - first) * s))
    pieces = []
    for phase in itertools.product(*plans):
        if any(plan is None for plan in phase):
            pieces.append(None)
            continue
        chosen = [plan for plan in phase if plan is not None]
        taps = w[tuple(plan.taps for plan in chosen)]
        pieces.append(
            forward(
                y,
                jnp.flip(taps, tuple(range(geometry.axes))),
                Geometry(
                    outputs,
                    taps.shape[: geometry.axes],
                    (1,) * geometry.axes,
                    tuple(plan.dilation for plan in chosen),
                    tuple(plan.pads for plan in chosen),
                    geometry.groups,
                    geometry.precision,
                ),
            )
        )
    counts = tuple(total // s for (_, total), s in zip(crops, geometry.strides, strict=True))
    shape = (y.shape[0], *counts, w.shape[-1])
    merged = _interleave([jnp.zeros(shape, y.dtype) if p is None else p for p in pieces], geometry.strides)
    starts = (0, *(start for start, _ in crops), 0)
    stops = (shape[0], *(start + size for (start, _), size in zip(crops, geometry.sizes, strict=True)), shape[-1])
    return lax.slice(merged, starts, stops)


class _Phase(NamedTuple):
    taps: slice
    dilation: int
    pads: tuple[int, int]


def _phase(p: int, width: int, s: int, d: int, outputs: int, first: int, last: int) -> _Phase | None:
    """Along one axis: the taps that phase `p` meets, and where; positions s m + p for m from `first` to `last`."""
    common = math.gcd(s, d)
    start = next((t for t in range(min(width, s // common)) if t * d % s == p), None)
    if start is None:
        return None
    taps = slice(start, width, s // common)
    count, dilation = len(range(width)[taps]), d // common
    before = (start * d - p) // s + (count - 1) * dilation - first
    after = (last - first) - outputs - before + (count - 1) * dilation
    return _Phase(taps, dilation, (before, after))


def _interleave(pieces: Sequence[Array], strides: Sequence[int]) -> Array:
    """Pieces of all phases, the last axis quickest, back into one array."""
    if len(pieces) == 1:
        return pieces[0]
    axes, shape = len(strides), pieces[0].shape
    stacked = jnp.stack(pieces, axis=-2).reshape(*shape[:-1], *strides, shape[-1])
    order = [0, *(a for i in range(axes) for a in (1 + i, 1 + axes + i)), 1 + 2 * axes]
    sizes = [n * s for n, s in zip(shape[1:-1], strides, strict=True)]
    return stacked.transpose(order).reshape(shape[0], *sizes, shape[-1])


def swap_channels(w: Array, groups: int) -> Array:
    """Kernel from outputs to inputs: `(*window, o // groups, c)`."""
    *window, inputs, out = w.shape
    w = w.reshape(*window, inputs, groups, out // groups)
    return jnp.moveaxis(w, -1, -3).swapaxes(-1, -2).reshape(*window, out // groups, groups * inputs)


# Matrix products over blocks of windows.


class _Blocks(NamedTuple):
    """A partition of the outputs `(n, *outputs)` into equal blocks; the last along an axis may reach beyond."""

    counts: tuple[Any, ...]
    sizes: tuple[Any, ...]

    @property
    def steps(self) -> int:
        return math.prod(self.counts)

    def position(self, step: Array) -> list[Array]:
        """Block along every axis of step number `step`."""
        return list(jnp.unravel_index(step, self.counts))


def _blocks(rows: Sequence[Any], values_per_row: int) -> _Blocks:
    """Blocks of at most about `BLOCK_VALUES` values, whole along the last axes where that is possible."""
    if not all(isinstance(size, int) for size in rows):  # exported for any number of cases
        return _Blocks((1,) * len(rows), tuple(rows))
    counts, sizes = [], []
    room = max(1, BLOCK_VALUES // values_per_row)
    for size in reversed(rows):
        count = -(-size // min(size, room))
        counts.append(count)
        sizes.append(-(-size // count))
        room = room // size if count == 1 else 0
        room = max(1, room)
    return _Blocks(tuple(reversed(counts)), tuple(reversed(sizes)))


def _windows(x: Array, geometry: Geometry, blocks: _Blocks) -> Callable[[Array], Array]:
    """A function of a block's number that gives its windows of `x`, `(rows, taps, c)`, taps in the kernel's order."""
    spans = [(t - 1) * d + 1 for t, d in zip(geometry.window, geometry.dilation, strict=True)]
    counts, sizes = blocks.counts[1:], blocks.sizes[1:]
    needed = [
        (count * size - 1) * s + span
        for count, size, s, span in zip(counts, sizes, geometry.strides, spans, strict=True)
    ]
    pads = [(lo, need - size - lo) for need, size, (lo, _) in zip(needed, geometry.sizes, geometry.pads, strict=True)]
    padded = _pad(x, pads)
    padded = jnp.pad(padded, [(0, blocks.counts[0] * blocks.sizes[0] - x.shape[0]), *[(0, 0)] * (x.ndim - 1)])
    extents = [(size - 1) * s + span for size, s, span in zip(sizes, geometry.strides, spans, strict=True)]

    def windows(step: Array) -> Array:
        block = padded
        if blocks.steps > 1:
            index = blocks.position(step)
            strides = (1, *geometry.strides)
            starts = [i * (size * s) for i, size, s in zip(index, blocks.sizes, strides, strict=True)]
            starts.append(jnp.zeros((), starts[0].dtype))
            block = lax.dynamic_slice(padded, starts, (blocks.sizes[0], *extents, x.shape[-1]))
        taps = [_shifted(block, tap, sizes, geometry) for tap in _taps(geometry)]
        return jnp.concatenate(taps, axis=-1).reshape(-1, len(taps), x.shape[-1])

    return windows


def _matmul(x: Array, w: Array, geometry: Geometry) -> Array:
    rows, out = (x.shape[0], *geometry.outputs), w.shape[-1]
    blocks = _blocks(rows, math.prod(geometry.window) * x.shape[-1])
    windows = _windows(x, geometry, blocks)
    kernel = w.reshape(-1, *w.shape[-2:])

    def product(step: Array) -> Array:
        return _multiply(windows(step), kernel, geometry)

    if blocks.steps == 1:
        return product(jnp.zeros((), int)).reshape(*rows, out)
    products = lax.map(product, jnp.arange(blocks.steps))
    products = products.reshape(*blocks.counts, *blocks.sizes, out)
    axes = len(rows)
    order = [*(a for i in range(axes) for a in (i, axes + i)), 2 * axes]
    whole = products.transpose(order).reshape(*(c * s for c, s in zip(blocks.counts, blocks.sizes, strict=True)), out)
    return whole[tuple(slice(size) for size in rows)]


def _multiply(windows: Array, kernel: Array, geometry: Geometry) -> Array:
    """`(rows, taps, c)` times `(taps, c // groups, o)`."""
    taps, inputs, out = kernel.shape
    if geometry.groups == 1:
        return jnp.matmul(windows.reshape(-1, taps * inputs), kernel.reshape(-1, out), precision=geometry.precision)
    groups = geometry.groups
    return jnp.einsum(
        "rtgc,tcgo->rgo",
        windows.reshape(-1, taps, groups, inputs),
        kernel.reshape(taps, inputs, groups, -1),
        precision=geometry.precision,
    ).reshape(-1, out)


def _matmul_kernel_gradient(x: Array, y: Array, geometry: Geometry) -> Array:
    rows, out, groups = y.shape[:-1], y.shape[-1], geometry.groups
    inputs, taps = x.shape[-1] // groups, math.prod(geometry.window)
    if groups == 1 and set(geometry.window) == set(geometry.strides) == {1} and not any(map(any, geometry.pads)):
        # No window overlaps another, so that blocks would only cost the loop around them.
        whole = _contract(x.reshape(-1, inputs), y.reshape(-1, out), geometry)
        return whole.reshape(*geometry.window, inputs, out)
    blocks = _blocks(rows, taps * x.shape[-1])
    windows = _windows(x, geometry, blocks)
    beyond = [c * s - size for c, s, size in zip(blocks.counts, blocks.sizes, rows, strict=True)]
    y = jnp.pad(y, [*((0, b) for b in beyond), (0, 0)])

    def product(step: Array) -> Array:
        block = y
        if blocks.steps > 1:
            starts = [i * size for i, size in zip(blocks.position(step), blocks.sizes, strict=True)]
            starts.append(jnp.zeros((), starts[0].dtype))
            block = lax.dynamic_slice(y, starts, (*blocks.sizes, out))
        if groups == 1:
            return _contract(windows(step).reshape(-1, taps * inputs), block.reshape(-1, out), geometry)
        seen = windows(step).reshape(-1, taps, groups, inputs)
        block = block.reshape(-1, groups, out // groups)
        return jnp.einsum("rtgc,rgo->tcgo", seen, block, precision=geometry.precision)

    if blocks.steps == 1:
        total = product(jnp.zeros((), int))
    else:
        steps = jnp.arange(blocks.steps)
        zeros = _zeros(jax.eval_shape(product, steps[0]).shape, y)
        total, _ = lax.scan(lambda total, step: (total + product(step), None), zeros, steps)
    return total.reshape(*geometry.window, inputs, out)


def _contract(a: Array, b: Array, geometry: Geometry) -> Array:
    """Sum over the first axis of both, `(n, k)` and `(n, m)`."""
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())), precision=geometry.precision)


# Narrow, for few outputs and strides of 1: one matrix product for all taps, and what moves from tap to tap is the
# outputs, which are fewer numbers than the windows of the input. Channels come first, so that whole rows move.


def _narrow(x: Array, w: Array, geometry: Geometry) -> Array:
    channels, out = w.shape[-2:]
    products = lax.dot_general(
        _by_output(w), x.reshape(-1, channels), (((1,), (1,)), ((), ())), precision=geometry.precision
    ).reshape(-1, out, *x.shape[:-1])
    padded = lax.pad(products, jnp.zeros((), x.dtype), [(0, 0, 0)] * 3 + [(lo, hi, 0) for lo, hi in geometry.pads])
    met = [_from(padded[number], tap, geometry.outputs, geometry) for number, tap in enumerate(_taps(geometry))]
    return jnp.moveaxis(sum(met[1:], start=met[0]), 0, -1)


def _narrow_input_gradient(y: Array, w: Array, geometry: Geometry) -> Array:
    product = _contract(_outputs_met(y, geometry), _by_output(w), geometry)
    return product.reshape(y.shape[0], *geometry.sizes, w.shape[-2])


def _narrow_kernel_gradient(x: Array, y: Array, geometry: Geometry) -> Array:
    channels, out = x.shape[-1], y.shape[-1]
    product = jnp.matmul(_outputs_met(y, geometry), x.reshape(-1, channels), precision=geometry.precision)
    return jnp.swapaxes(product.reshape(*geometry.window, out, channels), -1, -2)


def _by_output(w: Array) -> Array:
    """The kernel as `(taps * o, c)`."""
    return jnp.swapaxes(w, -1, -2).reshape(-1, w.shape[-2])


def _outputs_met(y: Array, geometry: Geometry) -> Array:
    """Output that each position of the input goes to by each tap, 0 beyond the edge, `(taps * o, n * sizes)`."""
    reach = [(width - 1) * d for width, d in zip(geometry.window, geometry.dilation, strict=True)]
    around = [(far - lo, far - hi, 0) for far, (lo, hi) in zip(reach, geometry.pads, strict=True)]
    padded = lax.pad(jnp.moveaxis(y, -1, 0), jnp.zeros((), y.dtype), [(0, 0, 0)] * 2 + around)
    # What a position meets by the first tap lies furthest on.
    met = [_from(padded, tap, geometry.sizes, geometry) for tap in reversed(list(_taps(geometry)))]
    return jnp.stack(met).reshape(len(met) * y.shape[-1], -1)


def _from(padded: Array, tap: Sequence[int], counts: Sequence[int], geometry: Geometry) -> Array:
    """So many positions of `(o, n, *sizes)` from that of a tap on."""
    places = [slice(t * d, t * d + n) for t, d, n in zip(tap, geometry.dilation, counts, strict=True)]
    return padded[:, :, *places]


# Shift and multiply, for kernels that see one channel each.


def _shift(x: Array, w: Array, geometry: Geometry) -> Array:
    out = w.shape[-1]
    padded = _pad(x, geometry.pads)
    counts = geometry.outputs
    zeros = _zeros((x.shape[0], *counts, out), x)

    def add(total: Array, padded: Array, w: Array, taps: Iterator[tuple[int, ...]]) -> Array:
        for tap in taps:
            seen = _repeat(_shifted(padded, tap, counts, geometry), out)
            total = total + seen * lax.reshape(w[tap], (1,) * (total.ndim - 1) + (out,))
        return total

    if math.prod(geometry.window) <= FUSED_TAPS:
        return add(zeros, padded, w, _taps(geometry))
    extent = (counts[0] - 1) * geometry.strides[0] + 1

    def add_slice(total: Array, tap: Array) -> tuple[Array, None]:
        block = lax.dynamic_slice_in_dim(padded, tap * geometry.dilation[0], extent, axis=1)
        one = geometry._replace(window=(1, *geometry.window[1:]))
        return add(total, block, lax.dynamic_slice_in_dim(w, tap, 1, axis=0), _taps(one)), None

    total, _ = lax.scan(add_slice, zeros, jnp.arange(geometry.window[0]))
    return total


def _repeat(x: Array, out: int) -> Array:
    """Every channel as often as it has outputs."""
    return x if x.shape[-1] == out else jnp.repeat(x, out // x.shape[-1], axis=-1)


def _shift_input_gradient(y: Array, w: Array, geometry: Geometry) -> Array:
    # One kernel an output, then the sum over the outputs of a channel.
    single = geometry._replace(groups=w.shape[-1])
    gradient = _by_phases(_shift, y, w, single)
    return gradient.reshape(*gradient.shape[:-1], geometry.groups, -1).sum(-1)


def _shift_kernel_gradient(x: Array, y: Array, geometry: Geometry) -> Array:
    """Sums over rows inside one elementwise expression of many terms, a few rows at a time.

    XLA's own reduction over leading axes reads memory once for every tap and does not use vector registers: 18 times
    slower. Here a step loads 18 to 30 rows of all columns and channels and adds their products to one row of partial
    sums for every tap; columns are added up at the end.
    """
    window, out = geometry.window, y.shape[-1]
    x = _repeat(x, out)
    while geometry.axes < 3:  # as three-dimensional: batch, depth and rows are what the steps go through
        x, y = x[:, None], y[:, None]
        geometry = Geometry(
            (1, *geometry.sizes),
            (1, *geometry.window),
            (1, *geometry.strides),
            (1, *geometry.dilation),
            ((0, 0), *geometry.pads),
            geometry.groups,
        )
    cases, depth, rows, columns, _ = y.shape
    (sd, sh, sw), (dd, dh, dw) = geometry.strides, geometry.dilation
    # Without a stride, columns and channels are one contiguous run for vector registers.
    flat = sw == 1
    length = columns * out if flat else (columns - 1) * sw + 1
    size = min(ROWS, key=lambda size: (-rows % size, size))
    count = -(-rows // size)
    seen_rows = (size - 1) * sh + (geometry.window[1] - 1) * dh + 1
    needed = (count * size - 1) * sh + (geometry.window[1] - 1) * dh + 1
    pad_d, (above, _), pad_w = geometry.pads
    x = _pad(x, (pad_d, (above, needed - geometry.sizes[1] - above), pad_w))
    y = jnp.pad(y, ((0, 0), (0, 0), (0, count * size - rows), (0, 0), (0, 0)))
    if flat:
        x, y = x.reshape(*x.shape[:3], -1), y.reshape(*y.shape[:3], -1)
    none, run = (0,) * (y.ndim - 3), y.shape[3:]
    taps = list(itertools.product(range(geometry.window[1]), range(geometry.window[2])))

    def plane(depth_tap: Array) -> Array:
        def add(totals: tuple[Array, ...], step: Array) -> tuple[tuple[Array, ...], None]:
            case, d, block = step // (depth * count), step // count % depth, step % count
            at = (case, d * sd + depth_tap * dd, block * (size * sh), *none)
            seen = lax.dynamic_slice(x, at, (1, 1, seen_rows, *x.shape[3:]))[0, 0]
            against = lax.dynamic_slice(y, (case, d, block * size, *none), (1, 1, size, *run))[0, 0]
            added = []
            for total, (row_tap, column_tap) in zip(totals, taps, strict=True):
                start = column_tap * dw * (out if flat else 1)
                for row in range(size):
                    met = seen[row * sh + row_tap * dh, start : start + length : sw]
                    total = total + met * against[row]
                added.append(total)
            return tuple(added), None

        zeros = (_zeros(run, y),) * len(taps)
        totals, _ = lax.scan(add, zeros, jnp.arange(cases * depth * count))
        return jnp.stack(totals).reshape(len(taps), columns, out).sum(1)

    if geometry.window[0] == 1:
        return plane(jnp.zeros((), int)).reshape(*window, 1, out)
    return lax.map(plane, jnp.arange(geometry.window[0])).reshape(*window, 1, out)


# Two-dimensional convolutions, which XLA does have a quick loop for, over the planes of a volume.


def _planes_of(x: Array, geometry: Geometry) -> list[Array]:
    """For every depth tap the planes that it meets, `(n * depth, h, w, c)`."""
    depth, padded = geometry.on(slice(0, 1)), _pad(x, (geometry.pads[0], (0, 0), (0, 0)))
    stops = [t * depth.dilation[0] + (geometry.outputs[0] - 1) * depth.strides[0] + 1 for t in range(depth.window[0])]
    starts = [t * depth.dilation[0] for t in range(depth.window[0])]
    met = [
        lax.slice_in_dim(padded, start, stop, depth.strides[0], axis=1)
        for start, stop in zip(starts, stops, strict=True)
    ]
    return [_merge(planes) for planes in met]


def _merge(volume: Array) -> Array:
    return volume.reshape(-1, *volume.shape[2:])


def _place_planes(met: Sequence[Array], cases: int, geometry: Geometry) -> Array:
    """Transpose of `_planes_of`: planes back where they were met, added up."""
    s, d, (lo, _) = geometry.strides[0], geometry.dilation[0], geometry.pads[0]
    size, count = geometry.sizes[0], geometry.outputs[0]
    placed = []
    for tap, planes in enumerate(met):
        volume = planes.reshape(cases, count, *planes.shape[1:])
        before = tap * d - lo
        after = size - before - ((count - 1) * s + 1)
        none = ((0, 0, 0),) * (volume.ndim - 2)
        placed.append(lax.pad(volume, jnp.zeros((), volume.dtype), ((0, 0, 0), (before, after, s - 1), *none)))
    return sum(placed[1:], start=placed[0])


def _planes(x: Array, w: Array, geometry: Geometry) -> Array:
    flat = geometry.on(slice(1, 3))
    products = [_direct(met, w[tap], flat) for tap, met in enumerate(_planes_of(x, geometry))]
    return sum(products[1:], start=products[0]).reshape(x.shape[0], *geometry.outputs, -1)


def _planes_input_gradient(y: Array, w: Array, geometry: Geometry) -> Array:
    flat = geometry.on(slice(1, 3))
    met = [_by_phases(_direct, _merge(y), w[tap], flat) for tap in range(geometry.window[0])]
    return _place_planes(met, y.shape[0], geometry)


def _planes_kernel_gradient(x: Array, y: Array, geometry: Geometry) -> Array:
    flat = geometry.on(slice(1, 3))
    return jnp.stack([_direct_kernel_gradient(met, _merge(y), flat) for met in _planes_of(x, geometry)])


def _folded(x: Array, w: Array, geometry: Geometry) -> Array:
    flat = geometry.on(slice(1, 3))
    met = jnp.concatenate(_planes_of(x, geometry), axis=-1)
    kernel = jnp.moveaxis(w, 0, 2).reshape(*flat.window, -1, w.shape[-1])
    return _direct(met, kernel, flat).reshape(x.shape[0], *geometry.outputs, -1)


def _folded_input_gradient(y: Array, w: Array, geometry: Geometry) -> Array:
    flat = geometry.on(slice(1, 3))
    kernel = jnp.moveaxis(w, 0, 2).reshape(*flat.window, -1, w.shape[-1])
    met = _by_phases(_direct, _merge(y), kernel, flat)
    return _place_planes(jnp.split(met, geometry.window[0], axis=-1), y.shape[0], geometry)


def _folded_kernel_gradient(x: Array, y: Array, geometry: Geometry) -> Array:
    flat = geometry.on(slice(1, 3))
    met = jnp.concatenate(_planes_of(x, geometry), axis=-1)
    kernel = _direct_kernel_gradient(met, _merge(y), flat)
    return jnp.moveaxis(kernel.reshape(*flat.window, geometry.window[0], x.shape[-1], -1), 2, 0)


FORMULATIONS: dict[str, Formulation] = {
    "direct": Formulation(_direct, _direct_input_gradient, _direct_kernel_gradient),
    "phases": Formulation(_direct, partial(_by_phases, _direct), _direct_kernel_gradient),
    "matmul": Formulation(_matmul, partial(_by_phases, _matmul), _matmul_kernel_gradient),
    "narrow": Formulation(_narrow, _narrow_input_gradient, _narrow_kernel_gradient),
    "shift": Formulation(_shift, _shift_input_gradient, _shift_kernel_gradient),
    "planes": Formulation(_planes, _planes_input_gradient, _planes_kernel_gradient),
    "folded": Formulation(_folded, _folded_input_gradient, _folded_kernel_gradient),
}
