r"""Cells: as a search mixes them, and as a genotype makes them.

.. math:: n_j = \sum_{i < j} \sum_{o \in O} x_o^{(i, j)} \, o(n_i), \qquad
          x^{(i, j)} = \operatorname{softmax}(\alpha^{(i, j)})

A mixed cell computes all edges that leave one map together: what does not depend on the edge (ReLU, pools) once, and
the convolutions of all edges as one with more outputs. The sum is the same as edge by edge.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fusion_jax.arrays import Array, ArrayLike, Bool, Float, Key
from fusion_jax.encoders.initial import lecun_normal
from fusion_jax.encoders.norm import Norm, NormKind
from fusion_jax.nas.genotype import KEPT, Edge, edge_count, edges_of
from fusion_jax.nas.operations import (
    KINDS,
    OPERATIONS,
    FactorisedReduce,
    Op,
    ReluConvNorm,
    check_operations,
    norm_groups,
    operation_parameters,
    pool,
    strided_halves,
)
from fusion_jax.ops.conv import conv
from fusion_jax.ops.pool import max_pool

__all__ = [
    "DerivedCell",
    "MixedCell",
    "Preprocess",
    "ReduceAt",
    "Remat",
    "derived_cell_parameters",
    "mixed_cell_parameters",
    "preprocess_parameters",
]

Remat = Literal["none", "operation", "edge", "cell"]
ReduceAt = Literal["edges", "preprocess"]


class Preprocess(nn.Module):
    """An input of a cell with the cell's channels, and at its size.

    Attributes:
      features: output channels.
      stride: 1 for a `ReluConvNorm`; 2 for a `FactorisedReduce`, 4 for two of them.
      norm, affine, dtype: as for `Op`.
    """

    features: int
    stride: int = 1
    norm: NormKind = "batch"
    affine: bool = True
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "b *n c"], *, train: bool, mask: Bool[ArrayLike, " b"] | None = None
    ) -> Float[Array, "b *m f"]:
        """The map with `features` channels, `stride` times smaller."""
        settings = (self.features, self.norm, self.affine, self.dtype)
        x = jnp.asarray(x)
        if self.stride == 1:
            return ReluConvNorm(*settings)(x, train=train, mask=mask)
        for _ in range(self.stride // 2):
            x = FactorisedReduce(*settings)(x, train=train, mask=mask)
        return x


def _strides(inputs: int, *, reduction: bool, reduction_before: bool, reduce_at: ReduceAt) -> tuple[list[int], int]:
    """Strides of the preprocessors, and of the edges that leave the inputs."""
    strides = [1] * inputs
    if reduction_before:  # the cell before the last one works at twice the size
        strides[0] = 2
    if reduction and reduce_at == "preprocess":
        return [2 * stride for stride in strides], 1
    return strides, 2 if reduction else 1


class MixedCell(nn.Module):
    r"""A cell in which every edge is the weighted sum of all operations.

    The output concatenates all nodes. Parameters: `input<i>` holds the preprocessor of an input, `map<i>` the kernels
    of all edges that leave map i (0 for the first input), each edge with `channels` outputs of them, in the order of
    the nodes that they lead to.

    Attributes:
      nodes: :math:`N`.
      channels: of every node.
      reduction: whether the map is halved.
      reduction_before: whether the last cell was one, so that the first input has twice the size.
      operations: candidates.
      norm: kind of norm, never affine.
      remat: what is computed again on the way back instead of kept: nothing; each operation; the edges that leave a
        map; or the cell, and in it each operation.
      partial: K; of every map one K-th of the channels goes through the operations, and the rest around them (through
        a max-pool where the map is halved). The channels are shuffled afterwards, so that all take part.
      reduce_at: where a reduction cell halves the map: on the "edges" from its inputs, or when it "preprocess"es these,
        with all operations at stride one.
      dtype: of the computation.

    Example:
      >>> cell = MixedCell(nodes=2, channels=4, operations=("none", "skip", "conv3"))
      >>> x, weights = jax.ShapeDtypeStruct((1, 6, 6, 8), jnp.float32), jnp.full((5, 3), 1 / 3)
      >>> jax.eval_shape(lambda x: cell.init_with_output(jax.random.key(0), [x, x], weights, train=False)[0], x).shape
      (1, 6, 6, 8)

    References:
      Liu et al. 2018, section 2.2; Xu et al. 2020 for `partial` and edge weights; Peng et al. 2020, Eq. 1 and 2;
      specs/mm_nas.md, sections 3 to 5 and reading N2.
    """

    nodes: int
    channels: int
    reduction: bool = False
    reduction_before: bool = False
    operations: tuple[str, ...] = OPERATIONS
    norm: NormKind = "group"
    remat: Remat = "none"
    partial: int = 1
    reduce_at: ReduceAt = "edges"
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        inputs: Sequence[Float[ArrayLike, "b *_ _"]],
        weights: Float[ArrayLike, "edges operations"],
        edge_weights: Float[ArrayLike, " edges"] | None = None,
        *,
        train: bool,
        mask: Bool[ArrayLike, " b"] | None = None,
    ) -> Float[Array, "b *m c"]:
        """The maps of all nodes, one after the other along the channels.

        Args:
          inputs: maps, all of one size; with `reduction_before` the first has twice the size.
          weights: of the operations on every edge, in the order of `edges_of`; they add up to one along the last axis.
          edge_weights: of the edges of every node; 1 unless given.
          train: whether running statistics of batch norm move.
          mask: which rows count in them.

        Raises:
          ValueError: settings or shapes that do not fit.
        """
        self._check(inputs, weights)
        strides, stride = _strides(
            len(inputs),
            reduction=self.reduction,
            reduction_before=self.reduction_before,
            reduce_at=self.reduce_at,
        )
        weights = jnp.asarray(weights, self.dtype)
        beta = jnp.ones(len(weights), self.dtype) if edge_weights is None else jnp.asarray(edge_weights, self.dtype)

        def cell(self: MixedCell, inputs: Sequence[Array], weights: Array, beta: Array, mask: Any) -> Array:
            maps = [
                Preprocess(self.channels, step, self.norm, affine=False, dtype=self.dtype, name=f"input{number}")(
                    x, train=train, mask=mask
                )
                for number, (x, step) in enumerate(zip(inputs, strides, strict=True))
            ]
            edges, total = edges_of(self.nodes, len(inputs)), len(inputs)
            nodes: list[list[Array]] = [[] for _ in range(self.nodes)]
            for number in range(total + self.nodes - 1):
                if number >= total:
                    maps.append(_sum(nodes[number - total]))
                rows = [row for row, (source, _) in enumerate(edges) if source == number]
                leaving = EdgesOfMap(
                    edges=len(rows),
                    channels=self.channels,
                    stride=stride if number < total else 1,
                    operations=self.operations,
                    norm=self.norm,
                    remat=self.remat,
                    partial=self.partial,
                    dtype=self.dtype,
                    name=f"map{number}",
                )
                brought = leaving(maps[number], weights[np.array(rows)], beta[np.array(rows)], train=train, mask=mask)
                for row, part in zip(rows, brought, strict=True):
                    nodes[edges[row][1] - total].append(part)
            return jnp.concatenate([_sum(parts) for parts in nodes], axis=-1)

        body = nn.remat(cell) if self.remat == "cell" else cell
        return body(self, [jnp.asarray(x) for x in inputs], weights, beta, mask)

    def _check(self, inputs: Sequence[ArrayLike], weights: ArrayLike) -> None:
        check_operations(self.operations, "MixedCell")
        shape = (edge_count(self.nodes, len(inputs)), len(self.operations))
        if jnp.shape(weights) != shape:
            raise ValueError(
                f"MixedCell: weights have shape {jnp.shape(weights)}; {len(inputs)} inputs, {self.nodes} nodes and "
                f"{len(self.operations)} operations need {shape}."
            )
        for name, kinds in (("remat", Remat), ("reduce_at", ReduceAt)):
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(
                    f"MixedCell: {name} is {getattr(self, name)!r}; expected one of {', '.join(get_args(kinds))}."
                )
        if self.partial < 1 or self.channels % self.partial:
            raise ValueError(
                f"MixedCell: partial is {self.partial} and does not divide {self.channels} channels; take a divisor, "
                "or other channels."
            )


def _sum(maps: Sequence[Array]) -> Array:
    return sum(maps[1:], start=maps[0])


class EdgesOfMap(nn.Module):
    """All edges of a mixed cell that leave one map.

    Kernels have the outputs of all edges along their last axis, those of one edge together. Where that is not too much
    work, a depthwise and a pointwise convolution with nothing in between are computed as the one dense convolution that
    they are, together with the standard convolution of the same window.

    Attributes:
      edges: how many.
      channels, stride, operations, norm, remat, partial, dtype: as for `MixedCell`.
    """

    edges: int
    channels: int
    stride: int
    operations: tuple[str, ...]
    norm: NormKind
    remat: Remat
    partial: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b *n c"],
        weights: Float[Array, "edges operations"],
        beta: Float[Array, " edges"],
        *,
        train: bool,
        mask: Bool[ArrayLike, " b"] | None,
    ) -> list[Float[Array, "b *m c"]]:
        """What every edge brings; `weights` of the operations and `beta` of the edges."""
        mixed = self.channels // self.partial
        kernels = self._kernels(mixed, x.ndim - 2)

        def together(names: tuple[str, ...]) -> Callable[..., Array]:
            def compute(self: EdgesOfMap, x: Array, kernels: dict[str, Array], weights: Array, mask: Any) -> Array:
                return self._mixture(names, x, kernels, weights, train=train, mask=mask)

            return compute if self.remat == "none" else nn.remat(compute)

        def edges(self: EdgesOfMap, x: Array, kernels: dict[str, Array], weights: Array, mask: Any) -> Array:
            parts = []
            for names in _divided(self.operations, apart=self.remat in ("operation", "cell")):
                own = {name: kernel for name, kernel in kernels.items() if name.split("_")[0] in names}
                columns = jnp.stack([weights[:, self.operations.index(name)] for name in names])
                parts.append(together(names)(self, x, own, columns, mask))
            return _sum(parts)

        total = edges(self, x[..., :mixed], kernels, weights * beta[:, None], mask)
        found = [total[..., mixed * number : mixed * (number + 1)] for number in range(self.edges)]
        if self.partial == 1:
            return found
        past = x[..., mixed:]
        if self.stride == 2:
            past = max_pool(past, 2, strides=2, padding=[(0, size % 2) for size in x.shape[1:-1]])
        return [_shuffle(part, past * beta[number], self.partial) for number, part in enumerate(found)]

    def _kernels(self, channels: int, axes: int) -> dict[str, Array]:
        """Parameters, drawn as one row: every draw of its own takes a tenth of a second to compile."""
        shapes = _kernel_shapes(self.operations, channels, self.edges, self.stride, axes)
        drawn: dict[str, Array] = {}
        if self.is_initializing() and shapes:
            drawn = _draw(self.make_rng("params"), shapes)
        return {
            name: self.param(name, lambda _, name=name, shape=shape: drawn[name] if drawn else jnp.zeros(shape)).astype(
                self.dtype
            )
            for name, shape in shapes.items()
        }

    def _mixture(
        self, names: tuple[str, ...], x: Array, kernels: dict[str, Array], weights: Array, *, train: bool, mask: Any
    ) -> Array:
        """Weighted sum of the operations `names`, for all edges: `(b, *m, edges * channels)`."""
        channels, terms = x.shape[-1], []

        def normalised(maps: dict[str, Array], stage: int) -> dict[str, Array]:
            """Every map of `channels` normalised by itself; all at once, since few large programs compile quickly."""
            if not maps:
                return {}
            y = jnp.concatenate(list(maps.values()), axis=-1)
            groups = y.shape[-1] // channels * norm_groups(channels)
            apart = len(names) < sum(name != "none" for name in self.operations)
            name = "_".join(["norm", str(stage), *(names if apart else ())])
            y = Norm(self.norm, groups, affine=False, dtype=self.dtype, name=name)(y, train=train, mask=mask)
            ends = np.cumsum([part.shape[-1] for part in maps.values()])[:-1]
            return dict(zip(maps, jnp.split(y, ends, axis=-1), strict=True))

        def weighted(name: str, y: Array) -> Array:
            scale = jnp.repeat(weights[names.index(name)], channels)
            y = y if y.shape[-1] == scale.shape[0] else jnp.tile(y, self.edges)
            return y * scale.reshape((1,) * (y.ndim - 1) + (-1,))

        if "skip" in names and self.stride == 1:
            terms.append(weighted("skip", x))
        maps = {name: pool(name, x, self.stride) for name in names if name in ("max_pool", "avg_pool")}
        positive = nn.relu(x)
        if "skip" in names and self.stride == 2:
            maps["skip"] = _factorised(positive, kernels, self.edges)
        maps |= _first_convolutions(names, positive, kernels, self.edges, self.stride)
        maps = normalised(maps, 0)
        separable = [name for name in names if name in KINDS and KINDS[name][0] == "sep"]
        second = {name: _second_convolution(name, nn.relu(maps.pop(name)), kernels, self.edges) for name in separable}
        terms += [weighted(name, y) for name, y in (maps | normalised(second, 1)).items()]
        return _sum(terms)


# Dense convolutions are few large operations: with them a program compiles in two thirds of the time that depthwise
# ones take, its second derivatives in a small part of it, and it runs nearly as fast while positions and channels are
# few (2 cores, 12^3 positions, 4 channels, 2 edges, forward and backward: 8.5 ms, and 7.2 with depthwise second
# convolutions).
NARROW = 8
FIRST_WORK = 2**18
SECOND_WORK = 2**20


def _as_dense(positions: int, channels: int) -> bool:
    """Whether a separable operation's first convolution is computed as the dense one that it is."""
    return channels <= NARROW or positions * channels**2 <= FIRST_WORK


def _divided(operations: Sequence[str], *, apart: bool) -> list[tuple[str, ...]]:
    """Operations that are computed, and computed again, together: all, or those of one window."""
    names = [name for name in operations if name != "none"]
    if not apart:
        return [tuple(names)]
    units: dict[object, tuple[str, ...]] = {}
    for name in names:
        window = KINDS[name][1:] if name in KINDS else name
        units[window] = (*units.get(window, ()), name)
    return list(units.values())


def _first_convolutions(
    names: Sequence[str], x: Array, kernels: Mapping[str, Array], edges: int, stride: int
) -> dict[str, Array]:
    """First (or only) convolution of every operation that has one, for all edges, before its norm."""
    channels = x.shape[-1]
    names = [name for name in names if name in KINDS]
    if not _as_dense(math.prod(x.shape[:-1]) // stride ** (x.ndim - 2), channels):
        return {name: _first_convolution(name, x, kernels, edges, stride) for name in names}
    dense = {name: _dense_kernel(name, kernels, channels) for name in names}
    together: dict[object, list[str]] = {}
    for name in names:
        # Strided, all windows that reach no further than two positions become one window over blocks of two.
        alike = KINDS[name][1:] if stride == 1 or name == "dil5" else "blocks"
        together.setdefault(alike, []).append(name)
    found = {}
    for alike, members in together.items():
        _, window, dilation = KINDS[members[0]]
        if alike == "blocks":
            kernel = jnp.concatenate([_over_blocks(dense[name], KINDS[name][2]) for name in members], axis=-1)
            y = conv(_blocks(x), kernel, padding=1)
        else:
            kernel = jnp.concatenate([dense[name] for name in members], axis=-1)
            # Strided, all taps of a dilated window lie on the strided grid.
            grid, step = (x, dilation) if stride == 1 else (strided_halves(x)[0], 1)
            y = conv(grid, kernel, padding=step * (window // 2), dilation=step)
        found |= dict(zip(members, jnp.split(y, len(members), axis=-1), strict=True))
    return found


def _first_convolution(name: str, x: Array, kernels: Mapping[str, Array], edges: int, stride: int) -> Array:
    """One of `_first_convolutions` for many channels."""
    _, window, dilation = KINDS[name]
    geometry: Any = {"strides": stride, "padding": dilation * (window // 2), "dilation": dilation}
    if name in kernels:
        return conv(x, kernels[name], **geometry)
    y = conv(jnp.tile(x, edges), kernels[f"{name}_depthwise_0"], groups=edges * x.shape[-1], **geometry)
    return conv(y, _block_diagonal(kernels[f"{name}_pointwise_0"], edges))


def _second_convolution(name: str, x: Array, kernels: Mapping[str, Array], edges: int) -> Array:
    """Second convolution of a separable operation, for all edges, before its norm."""
    depthwise, pointwise = kernels[f"{name}_depthwise_1"], kernels[f"{name}_pointwise_1"]
    padding = KINDS[name][1] // 2
    if math.prod(x.shape) * x.shape[-1] <= SECOND_WORK:
        dense = _composed(depthwise, pointwise, x.shape[-1] // edges)
        return conv(x, _block_diagonal(dense, edges), padding=padding)
    y = conv(x, depthwise, padding=padding, groups=x.shape[-1])
    return conv(y, _block_diagonal(pointwise, edges))


def _dense_kernel(name: str, kernels: Mapping[str, Array], channels: int) -> Array:
    if name in kernels:
        return kernels[name]
    return _composed(kernels[f"{name}_depthwise_0"], kernels[f"{name}_pointwise_0"], channels)


def _blocks(x: Array) -> Array:
    """Two positions of every axis as channels: half the size, eight times the channels in three dimensions."""
    sizes, axes = x.shape[1:-1], x.ndim - 2
    x = jnp.pad(x, [(0, 0), *((0, size % 2) for size in sizes), (0, 0)])
    split = x.reshape(x.shape[0], *(part for size in x.shape[1:-1] for part in (size // 2, 2)), x.shape[-1])
    order = (0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
    return split.transpose(order).reshape(x.shape[0], *(-(-size // 2) for size in sizes), -1)


def _over_blocks(kernel: Array, dilation: int) -> Array:
    """The kernel over `_blocks` that gives, without a stride, what `kernel` gives with a stride of two.

    Taps at -2 to 2 around a position that is the first of its block lie in three blocks, -2 to 3.
    """
    axes = kernel.ndim - 2
    reach = dilation * (kernel.shape[0] // 2)
    pads = [(2 - reach, 3 - reach, dilation - 1)] * axes + [(0, 0, 0)] * 2
    spread = jax.lax.pad(kernel, jnp.zeros((), kernel.dtype), pads)
    split = spread.reshape(*(3, 2) * axes, *kernel.shape[-2:])
    order = (*range(0, 2 * axes, 2), *range(1, 2 * axes, 2), 2 * axes, 2 * axes + 1)
    return split.transpose(order).reshape(*(3,) * axes, -1, kernel.shape[-1])


def _kernel_shapes(
    operations: Sequence[str], channels: int, edges: int, stride: int, axes: int
) -> dict[str, tuple[int, ...]]:
    """Kernels of the edges that leave one map, in the layout of `ops.conv` with one group an edge."""
    outputs = edges * channels
    one = (1,) * axes
    shapes: dict[str, tuple[int, ...]] = {}
    for name in operations:
        if name == "skip" and stride == 2:
            half = channels // 2
            shapes |= {"skip_here": (*one, channels, edges * half)} if half else {}
            shapes["skip_next"] = (*one, channels, edges * (channels - half))
        elif name in KINDS:
            kind, window, _ = KINDS[name]
            if kind == "conv":
                shapes[name] = (*(window,) * axes, channels, outputs)
            for stage in range({"conv": 0, "dil": 1, "sep": 2}[kind]):
                shapes[f"{name}_depthwise_{stage}"] = (*(window,) * axes, 1, outputs)
                shapes[f"{name}_pointwise_{stage}"] = (*one, channels, outputs)
    return shapes


def _draw(key: Key, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Kernels as `lecun_normal` draws them, by one draw."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    row = lecun_normal(key, (1, sum(sizes)))
    parts = jnp.split(row[0], np.cumsum(sizes)[:-1])
    return {
        name: part.reshape(shape) / math.sqrt(math.prod(shape[:-1]))
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def _composed(depthwise: Array, pointwise: Array, channels: int) -> Array:
    """The dense kernel of a depthwise convolution and the pointwise one after it."""
    window = depthwise.shape[:-2]
    deep = jnp.moveaxis(depthwise.reshape(*window, -1, channels), -1, -2)[..., None]
    point = pointwise.reshape(*(1,) * len(window), channels, -1, channels)
    return (deep * point).reshape(*window, channels, -1)


def _block_diagonal(kernel: Array, edges: int) -> Array:
    """Kernels of edges that do not see each other as one dense kernel; many narrow products would take longer."""
    *window, channels, outputs = kernel.shape
    blocks = jnp.moveaxis(kernel.reshape(*window, channels, edges, -1), -2, -3)
    eye = jnp.eye(edges, dtype=kernel.dtype).reshape(*(1,) * len(window), edges, 1, edges, 1)
    return (blocks[..., None, :] * eye).reshape(*window, edges * channels, outputs)


def _factorised(x: Array, kernels: Mapping[str, Array], edges: int) -> Array:
    """`FactorisedReduce` of every edge, between its ReLU and its norm."""
    here, next_ = strided_halves(x)
    halves = [
        conv(part, kernels[name]).reshape(*part.shape[:-1], edges, -1)
        for part, name in ((here, "skip_here"), (next_, "skip_next"))
        if name in kernels
    ]
    y = jnp.concatenate(halves, axis=-1)
    return y.reshape(*y.shape[:-2], -1)


def _shuffle(mixed: Array, past: Array, groups: int) -> Array:
    """Channels that went through and around the operations, taken in turn."""
    y = jnp.concatenate([mixed, past], axis=-1)
    split = y.reshape(*y.shape[:-1], groups, -1)
    return jnp.swapaxes(split, -1, -2).reshape(y.shape)


class DerivedCell(nn.Module):
    """A cell of a genotype.

    Parameters: `input<i>` and, for every edge of the genotype in turn, `edge<i>`, an `Op` with affine norms.

    Attributes:
      edges: two a node.
      concat: nodes that make the output.
      channels: of every node.
      reduction, reduction_before, norm, reduce_at, dtype: as for `MixedCell`.
      drop_path: probability with which, in training, a case is left without an edge; skips stay, and what is left is
        scaled up. Draws with the key "dropout".

    Example:
      >>> cell = DerivedCell(edges=(("conv3", 0), ("skip", 1)), concat=(2,), channels=4)
      >>> x = jax.ShapeDtypeStruct((1, 6, 6, 8), jnp.float32)
      >>> jax.eval_shape(lambda x: cell.init_with_output(jax.random.key(0), [x, x], train=False)[0], x).shape
      (1, 6, 6, 4)

    References:
      Liu et al. 2018; Larsson et al. 2017 for `drop_path`.
    """

    edges: tuple[Edge, ...]
    concat: tuple[int, ...]
    channels: int
    reduction: bool = False
    reduction_before: bool = False
    norm: NormKind = "batch"
    drop_path: float = 0.0
    reduce_at: ReduceAt = "edges"
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        inputs: Sequence[Float[ArrayLike, "b *_ _"]],
        *,
        train: bool,
        mask: Bool[ArrayLike, " b"] | None = None,
    ) -> Float[Array, "b *m c"]:
        """The maps of the nodes in `concat`, one after the other; inputs as for `MixedCell`."""
        strides, stride = _strides(
            len(inputs), reduction=self.reduction, reduction_before=self.reduction_before, reduce_at=self.reduce_at
        )
        maps = [
            Preprocess(self.channels, step, self.norm, dtype=self.dtype, name=f"input{number}")(
                x, train=train, mask=mask
            )
            for number, (x, step) in enumerate(zip(inputs, strides, strict=True))
        ]
        brought: list[Array] = []
        for number, (operation, source) in enumerate(self.edges):
            step = stride if source < len(inputs) else 1
            y = Op(operation, self.channels, step, self.norm, dtype=self.dtype, name=f"edge{number}")(
                maps[source], train=train, mask=mask
            )
            if train and self.drop_path > 0 and (operation != "skip" or step == 2):
                y = _drop(self.make_rng("dropout"), y, self.drop_path)
            brought.append(y)
            if len(brought) == KEPT:
                maps.append(_sum(brought))
                brought = []
        return jnp.concatenate([maps[node] for node in self.concat], axis=-1)


def _drop(key: Key, y: Array, probability: float) -> Array:
    kept = jax.random.bernoulli(key, 1 - probability, (y.shape[0], *(1,) * (y.ndim - 1)))
    return jnp.where(kept, y / (1 - probability), jnp.zeros((), y.dtype))


# Closed forms


def preprocess_parameters(channels_in: int, channels: int, stride: int, *, affine: bool) -> int:
    """Parameters of a `Preprocess`.

    Example:
      >>> preprocess_parameters(12, 4, 1, affine=False), preprocess_parameters(12, 4, 4, affine=True)
      (48, 80)
    """
    first = channels_in * channels + 2 * channels * affine
    return first + (channels * channels + 2 * channels * affine if stride == 4 else 0)


def mixed_cell_parameters(cell: MixedCell, channels_in: Sequence[int], axes: int) -> int:
    """Parameters of a mixed cell whose inputs have so many channels, in `axes` spatial axes.

    Example:
      >>> mixed_cell_parameters(MixedCell(nodes=4, channels=16), (16, 16), 3) - 2 * 16 * 16
      668416

    References:
      specs/mm_nas.md, section 5.2.
    """
    strides, stride = _strides(
        len(channels_in),
        reduction=cell.reduction,
        reduction_before=cell.reduction_before,
        reduce_at=cell.reduce_at,
    )
    total = sum(
        preprocess_parameters(width, cell.channels, step, affine=False)
        for width, step in zip(channels_in, strides, strict=True)
    )
    mixed = cell.channels // cell.partial
    for source, _ in edges_of(cell.nodes, len(channels_in)):
        step = stride if source < len(channels_in) else 1
        total += sum(operation_parameters(name, mixed, axes, stride=step, affine=False) for name in cell.operations)
    return total


def derived_cell_parameters(cell: DerivedCell, channels_in: Sequence[int], axes: int) -> int:
    """Parameters of a derived cell with affine norms whose inputs have so many channels.

    Example:
      >>> derived_cell_parameters(DerivedCell((("conv3", 0), ("skip", 1)), (2,), channels=4), (8, 8), 2)
      232
    """
    strides, stride = _strides(
        len(channels_in),
        reduction=cell.reduction,
        reduction_before=cell.reduction_before,
        reduce_at=cell.reduce_at,
    )
    affine = cell.norm != "none"
    total = sum(
        preprocess_parameters(width, cell.channels, step, affine=affine)
        for width, step in zip(channels_in, strides, strict=True)
    )
    for operation, source in cell.edges:
        step = stride if source < len(channels_in) else 1
        total += operation_parameters(operation, cell.channels, axes, stride=step, affine=affine)
    return total
