"""The network that is searched, and the one that is derived from what was found.

Stems bring every image to a map. The first cell sees the maps of the images, the second one that of their sum and the
first cell's output, every other one the outputs of the two cells before it. Behind the last cell come convolutions, a
mean over positions, clinical values if there are any, and a linear layer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from fusion_jax.arrays import Array, ArrayLike, Bool, Float, Outputs
from fusion_jax.encoders.layers import Conv
from fusion_jax.encoders.norm import Norm, NormKind
from fusion_jax.nas.cell import (
    DerivedCell,
    MixedCell,
    ReduceAt,
    Remat,
    derived_cell_parameters,
    mixed_cell_parameters,
)
from fusion_jax.nas.genotype import Genotype, edge_count
from fusion_jax.nas.operations import OPERATIONS, norm_groups
from fusion_jax.ops.pool import global_average_pool
from fusion_jax.wording import listed

__all__ = [
    "ARCHITECTURE",
    "DerivedNet",
    "Mixing",
    "SuperNet",
    "architecture_shapes",
    "cell_tables",
    "derived_parameters",
    "mixing_weights",
    "supernet_parameters",
]

ARCHITECTURE = "architecture"
"""Collection of the logits that a search moves."""

AUXILIARY = "auxiliary"
AUXILIARY_WIDTH = 128
Mixing = Literal["softmax", "gumbel"]
INITIAL_BIAS = 0.1
INITIAL_LOGITS = 1e-3

Inputs = Mapping[str, Any]
Masks = Mapping[str, Bool[ArrayLike, "b"]]


class SuperNet(nn.Module):
    r"""Network of mixed cells; the weights of the mixtures are variables like any other.

    Variables: `params`, `batch_stats` with batch norm, and `architecture`: one table of logits :math:`\alpha`,
    `(edges, operations)`, for all normal cells, one for all reduction cells, and one called `first` for a first cell of
    more than two images. With partial channels also logits of the edges, `(edges,)`, as `normal_edges` and so on.

    Attributes:
      sources: images, in the order in which the first cell takes them; all of one shape.
      clinical: sources of shape `(b, f)` that join before the last layer.
      layout: cells in order, N normal and R reduction; starts with N.
      nodes: of every cell.
      channels: of every node in the first cells; each reduction doubles them.
      stem_multiplier: the stems have so many times `channels`.
      stem_stride: of the stems.
      outputs: logits.
      head: channels of the convolutions behind the last cell.
      operations: candidates on every edge.
      norm: "group" looks at one case at a time; "batch" is the published one. Stems have a bias unless it is "batch":
        within one case a norm would take away how bright the whole image is.
      remat: as for `MixedCell`.
      partial: as for `MixedCell`; edge weights come with it.
      mixing: "softmax", or in training a draw from the relaxed categorical distribution, key "dropout".
      temperature: of that draw.
      reduce_at: as for `MixedCell`.
      dtype: of the computation.

    Example:
      >>> net = SuperNet(("pet", "ct"), layout="NR", nodes=1, channels=4, operations=("none", "skip", "conv3"))
      >>> architecture_shapes(net)
      {'normal': (2, 3), 'reduce': (2, 3)}

    References:
      Peng et al. 2020, Figure 1; Liu et al. 2018; Xu et al. 2020 (partial channels); Jang et al. 2017 and Xie et al.
      2019 (draws); specs/mm_nas.md, section 5, readings N2 to N6 and N10.
    """

    sources: Sequence[str]
    clinical: Sequence[str] = ()
    layout: str = "NRNRNR"
    nodes: int = 4
    channels: int = 4
    stem_multiplier: int = 3
    stem_stride: int = 2
    outputs: int = 2
    head: Sequence[int] = (64, 32)
    operations: Sequence[str] = OPERATIONS
    norm: NormKind = "group"
    remat: Remat = "edge"
    partial: int = 1
    mixing: Mixing = "softmax"
    temperature: float = 1.0
    reduce_at: ReduceAt = "edges"
    dtype: jax.typing.DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        """Make hashable what may come as a list."""
        for name in ("sources", "clinical", "head", "operations"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Inputs, *, present: Masks, valid: Bool[ArrayLike, "b"], train: bool) -> Outputs:
        """Logits, and the features of every source: the mean of its stem's map, or the clinical values.

        Args:
          inputs: source to array; more sources than the network reads are welcome.
          present: source to which rows have it; what an absent image holds counts as zeros.
          valid: which rows are cases.
          train: whether running statistics move and Gumbel mixtures are drawn.

        Raises:
          ValueError: settings that contradict each other, or inputs that do not fit.
        """
        _check_network(self, inputs, present)
        self._check()
        tables = {
            name: self.variable(
                ARCHITECTURE,
                name,
                lambda shape=shape: INITIAL_LOGITS * jax.random.normal(self.make_rng("params"), shape),
            ).value
            for name, shape in architecture_shapes(self).items()
        }
        # One draw for all cells of a kind, which share what they are.
        weights, edges = {}, {}
        for table, _ in dict.fromkeys(cell_tables(self.layout, len(self.sources))):
            noisy = self.mixing == "gumbel" and train
            key = self.make_rng("dropout") if noisy else None
            weights[table] = mixing_weights(tables[table], key, self.temperature)
            beta = tables.get(f"{table}_edges")
            edges[table] = None if beta is None else _by_node(beta, self.nodes, len(tables[table]))

        def cell(number: int, table: str, kind: str, channels: int, before: bool, maps: list[Array]) -> Array:
            mixed = MixedCell(
                nodes=self.nodes,
                channels=channels,
                reduction=kind == "R",
                reduction_before=before,
                operations=tuple(self.operations),
                norm=self.norm,
                remat=self.remat,
                partial=self.partial,
                reduce_at=self.reduce_at,
                dtype=self.dtype,
                name=f"cell{number}",
            )
            return mixed(maps, weights[table], edges[table], train=train, mask=mask)

        mask = _any_present(self, present, valid)
        return _network(self, cell, inputs, present, valid, mask, train=train)

    def _check(self) -> None:
        if self.mixing not in get_args(Mixing):
            raise ValueError(f"SuperNet: mixing is {self.mixing!r}; expected one of {', '.join(get_args(Mixing))}.")
        if not self.temperature > 0:
            raise ValueError(f"SuperNet: temperature is {self.temperature}; expected a positive number.")


class DerivedNet(nn.Module):
    """Network of the cells of a genotype.

    Attributes:
      genotype: the cells.
      sources, clinical, layout, channels, stem_multiplier, stem_stride, outputs, head, reduce_at, dtype: as for
        `SuperNet`. Without `head` the linear layer follows the mean over positions at once.
      norm: kind of norm, with scale and bias.
      drop_path: as for `DerivedCell`.
      auxiliary: whether logits are also taken behind two thirds of the cells, into `source_logits["auxiliary"]`: ReLU,
        1 x 1 convolution to 128 channels, norm, ReLU, mean over positions, linear layer.

    Example:
      >>> from fusion_jax.nas.genotype import DARTS_V2
      >>> net = DerivedNet(
      ...     DARTS_V2, ("image",), layout="NNNNNNRNNNNNNRNNNNNN", channels=36, stem_stride=1, outputs=10, head=(),
      ...     norm="batch",
      ... )
      >>> derived_parameters(net, channels_in=3, axes=2)
      3349342

    References:
      Peng et al. 2020; Liu et al. 2018, who print 3.3 million for the network of the example on CIFAR-10; the head:
      specs/mm_nas.md, section 5.
    """

    genotype: Genotype
    sources: Sequence[str]
    clinical: Sequence[str] = ()
    layout: str = "NRNRNR"
    channels: int = 8
    stem_multiplier: int = 3
    stem_stride: int = 2
    outputs: int = 2
    head: Sequence[int] = (64, 32)
    norm: NormKind = "group"
    drop_path: float = 0.0
    auxiliary: bool = False
    reduce_at: ReduceAt = "edges"
    dtype: jax.typing.DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        """Make hashable what may come as a list."""
        for name in ("sources", "clinical", "head"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Inputs, *, present: Masks, valid: Bool[ArrayLike, "b"], train: bool) -> Outputs:
        """Logits and features of a batch; arguments as for `SuperNet`.

        Raises:
          ValueError: settings that contradict each other or the genotype, or inputs that do not fit.
        """
        _check_network(self, inputs, present)
        self._check()

        def cell(number: int, table: str, kind: str, channels: int, before: bool, maps: list[Array]) -> Array:
            derived = _derived_cell(self, table, kind, channels, before, name=f"cell{number}")
            return derived(maps, train=train, mask=mask)

        mask = _any_present(self, present, valid)
        return _network(self, cell, inputs, present, valid, mask, train=train)

    def _check(self) -> None:
        for table, _ in cell_tables(self.layout, len(self.sources)):
            if not getattr(self.genotype, table):
                raise ValueError(
                    f"DerivedNet: layout {self.layout!r} over {len(self.sources)} images needs the cell {table!r}, "
                    f"which the genotype lacks. Search with as many images and a layout of the same kinds of cells."
                )
        if self.genotype.inputs != max(2, len(self.sources)):
            raise ValueError(
                f"DerivedNet: the genotype's first cell takes {self.genotype.inputs} maps, and there are "
                f"{len(self.sources)} images ({listed(self.sources)}). Search with the same number."
            )
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"DerivedNet: drop_path is {self.drop_path}; expected at least 0 and below 1.")


Network = SuperNet | DerivedNet


def _derived_cell(
    net: DerivedNet, table: str, kind: str, channels: int, before: bool, name: str | None = None
) -> DerivedCell:
    return DerivedCell(
        edges=getattr(net.genotype, table),
        concat=getattr(net.genotype, f"{table}_concat"),
        channels=channels,
        reduction=kind == "R",
        reduction_before=before,
        norm=net.norm,
        drop_path=net.drop_path,
        reduce_at=net.reduce_at,
        dtype=net.dtype,
        name=name,
    )


# Tables of logits


def cell_tables(layout: str, images: int) -> list[tuple[str, str]]:
    """Table of every cell of a layout, and its kind, N or R.

    Example:
      >>> cell_tables("NRN", 2), cell_tables("NR", 3)
      ([('normal', 'N'), ('reduce', 'R'), ('normal', 'N')], [('first', 'N'), ('reduce', 'R')])
    """
    tables = [("reduce" if kind == "R" else "normal", kind) for kind in layout]
    return [("first", "N"), *tables[1:]] if images > 2 else tables


def architecture_shapes(net: SuperNet) -> dict[str, tuple[int, ...]]:
    """Shapes of the collection `architecture`: only tables of cells that the layout has.

    Example:
      >>> architecture_shapes(SuperNet(("pet", "ct"), partial=2))
      {'normal': (14, 10), 'normal_edges': (14,), 'reduce': (14, 10), 'reduce_edges': (14,)}
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for table, _ in cell_tables(net.layout, len(net.sources)):
        edges = edge_count(net.nodes, len(net.sources) if table == "first" else 2)
        shapes[table] = (edges, len(net.operations))
        if net.partial > 1:
            shapes[f"{table}_edges"] = (edges,)
    return dict(sorted(shapes.items()))


def mixing_weights(
    logits: Float[ArrayLike, "edges operations"], key: jax.Array | None = None, temperature: float = 1.0
) -> Float[Array, "edges operations"]:
    r"""Weights of the operations on every edge: the softmax of the logits, or a draw near one of them.

    .. math:: x = \operatorname{softmax}(\alpha) \quad\text{or}\quad
              x = \operatorname{softmax}\bigl((\alpha + g) / \tau\bigr), \quad g \sim \text{Gumbel}

    Args:
      logits: :math:`\alpha`.
      key: of the draw; none is drawn without.
      temperature: :math:`\tau`; a small one draws nearly a single operation.

    Example:
      >>> mixing_weights(jnp.zeros((1, 4))).tolist()
      [[0.25, 0.25, 0.25, 0.25]]

    References:
      Liu et al. 2018, Eq. 2; Jang et al. 2017, Eq. 2.
    """
    logits = jnp.asarray(logits)
    if key is not None:
        logits = (logits + jax.random.gumbel(key, logits.shape, logits.dtype)) / temperature
    return jax.nn.softmax(logits, axis=-1)


def _by_node(logits: Array, nodes: int, edges: int) -> Array:
    """Softmax over the edges of every node."""
    inputs = (edges - nodes * (nodes - 1) // 2) // nodes
    parts, start = [], 0
    for node in range(nodes):
        parts.append(jax.nn.softmax(logits[start : start + inputs + node]))
        start += inputs + node
    return jnp.concatenate(parts)


# What both networks share


def _network(
    net: Network, cell: Any, inputs: Inputs, present: Masks, valid: ArrayLike, mask: Array, *, train: bool
) -> Outputs:
    """Stems, cells and head; called inside the compact method of `net`, whose submodules these become."""
    masks = {name: jnp.asarray(valid) & jnp.asarray(present[name]) for name in net.sources}
    images = {name: _hidden(jnp.asarray(inputs[name], net.dtype), masks[name]) for name in net.sources}
    stems = [_stem(net, images[name], masks[name], f"stem_{name}", train=train) for name in net.sources]
    features = {name: _mean(stem) for name, stem in zip(net.sources, stems, strict=True)}
    if len(stems) == 1:  # twice the same, as in a network of one image
        stems, maps = stems * 2, [stems[0]]
    else:
        maps = [_stem(net, _total(images.values()), mask, "stem_sum", train=train)]
    tables = cell_tables(net.layout, len(net.sources))
    logits: dict[str, Array] = {}
    channels, reduced = net.channels, False
    for number, (table, kind) in enumerate(tables):
        channels *= 2 if kind == "R" else 1
        maps.append(cell(number, table, kind, channels, reduced, maps[-2:] if number else stems))
        reduced = kind == "R"
        if isinstance(net, DerivedNet) and net.auxiliary and number == _auxiliary_after(len(tables)):
            logits[AUXILIARY] = _auxiliary(net, maps[-1], mask, train=train)
    y = maps[-1]
    for number, width in enumerate(net.head):
        y = Conv(width, 3, padding=1, use_bias=False, dtype=net.dtype, name=f"head{number}")(y)
        y = nn.relu(_normalised(net, y, mask, f"head{number}_norm", train=train))
    pooled = [_mean(y)]
    for name in net.clinical:
        features[name] = _hidden(inputs[name], jnp.asarray(valid) & jnp.asarray(present[name])).astype(jnp.float32)
        pooled.append(features[name])
    fused = nn.Dense(net.outputs, dtype=net.dtype, name="classifier")(jnp.concatenate(pooled, axis=-1))
    return Outputs(fused, logits, features)


def _stem(net: Network, x: Array, mask: Array, name: str, *, train: bool) -> Array:
    y = Conv(
        net.channels * net.stem_multiplier,
        3,
        strides=net.stem_stride,
        padding=1,
        use_bias=_stem_bias(net),
        bias_init=nn.initializers.normal(INITIAL_BIAS),
        dtype=net.dtype,
        name=name,
    )(x)
    return _hidden(_normalised(net, y, mask, f"{name}_norm", train=train), mask)


def _stem_bias(net: Network) -> bool:
    # The norm of a whole group within one case is blind to a common factor, and all later layers with it: the same
    # tumour at half the uptake would look the same. A bias that is not scaled along with the image gives it a measure.
    return net.norm != "batch"


def _normalised(net: Network, y: Array, mask: Array, name: str, *, train: bool) -> Array:
    return Norm(net.norm, norm_groups(y.shape[-1]), dtype=net.dtype, name=name)(y, train=train, mask=mask)


def _auxiliary_after(cells: int) -> int:
    return 2 * cells // 3


def _auxiliary(net: DerivedNet, y: Array, mask: Array, *, train: bool) -> Array:
    y = Conv(AUXILIARY_WIDTH, 1, use_bias=False, dtype=net.dtype, name="auxiliary")(nn.relu(y))
    y = nn.relu(_normalised(net, y, mask, "auxiliary_norm", train=train))
    return nn.Dense(net.outputs, dtype=net.dtype, name="auxiliary_classifier")(_mean(y))


def _mean(y: Array) -> Array:
    return global_average_pool(y.astype(jnp.float32))


def _total(arrays: Iterable[Array]) -> Array:
    first, *others = arrays
    return sum(others, start=first)


def _hidden(x: ArrayLike, mask: Array) -> Array:
    """`x` with zeros in the rows that do not count, whatever these hold."""
    x = jnp.asarray(x)
    return jnp.where(mask.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.zeros((), x.dtype))


def _any_present(net: Network, present: Masks, valid: ArrayLike) -> Array:
    """Rows with at least one image."""
    found = jnp.asarray(present[net.sources[0]])
    for name in net.sources[1:]:
        found = found | jnp.asarray(present[name])
    return jnp.asarray(valid) & found


# Refusals


def _check_network(net: Network, inputs: Inputs, present: Masks) -> None:
    kind = type(net).__name__
    names = (*net.sources, *net.clinical)
    if not net.sources or len(set(names)) != len(names):
        raise ValueError(
            f"{kind}: images are {listed(net.sources) or 'missing'}, clinical sources are "
            f"{listed(net.clinical) or 'none'}; expected at least one image, and no name twice."
        )
    if set(net.layout) - set("NR") or not net.layout.startswith("N"):
        raise ValueError(
            f"{kind}: layout is {net.layout!r}; expected letters N (normal cell) and R (reduction cell), N first."
        )
    if net.reduce_at not in get_args(ReduceAt):
        raise ValueError(f"{kind}: reduce_at is {net.reduce_at!r}; expected one of {', '.join(get_args(ReduceAt))}.")
    if min(net.channels, net.stem_multiplier, net.stem_stride, net.outputs, *net.head) < 1:
        raise ValueError(
            f"{kind}: channels={net.channels}, stem_multiplier={net.stem_multiplier}, stem_stride={net.stem_stride}, "
            f"outputs={net.outputs} and head={net.head} must all be 1 or more."
        )
    if lacking := [name for name in names if name not in inputs or name not in present]:
        raise ValueError(
            f"{kind} reads {listed(names, 8)}; the batch holds {listed(sorted(inputs), 8)} and lacks "
            f"{listed(lacking)}. Add the source to the cohort, or leave it out of the network."
        )
    shapes = {name: jnp.shape(inputs[name]) for name in net.sources}
    wrong = [name for name, shape in shapes.items() if len(shape) not in (4, 5) or 0 in shape[1:]]
    if wrong:
        raise ValueError(
            f"{kind}: source {wrong[0]!r} has shape {shapes[wrong[0]]}; expected an image (b, h, w, c) or "
            "(b, d, h, w, c). Name a table of values under `clinical`."
        )
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"{name} {shape[1:]}" for name, shape in shapes.items())
        raise ValueError(
            f"{kind}: images differ in shape: {found}. Bring them to one grid and one number of channels, since their "
            "sum has a stem of its own."
        )
    for name in net.clinical:
        if len(jnp.shape(inputs[name])) != 2:
            raise ValueError(
                f"{kind}: clinical source {name!r} has shape {jnp.shape(inputs[name])}; expected (b, f). Name an image "
                "under `sources`."
            )


# Closed forms


def supernet_parameters(net: SuperNet, channels_in: int, axes: int, *, clinical: int = 0) -> int:
    """Parameters of a network that is searched; its logits do not count.

    Args:
      net: the network.
      channels_in: of every image.
      axes: spatial axes, 2 or 3.
      clinical: values of all clinical sources together.

    Example:
      >>> supernet_parameters(SuperNet(("pet", "ct")), channels_in=1, axes=3)
      4548346

    References:
      specs/mm_nas.md, section 5.2.
    """

    def cell(table: str, kind: str, channels: int, before: bool, channels_in: list[int]) -> tuple[int, int]:
        mixed = MixedCell(
            nodes=net.nodes,
            channels=channels,
            reduction=kind == "R",
            reduction_before=before,
            operations=tuple(net.operations),
            partial=net.partial,
            reduce_at=net.reduce_at,
        )
        return mixed_cell_parameters(mixed, channels_in, axes), net.nodes * channels

    return _parameters(net, cell, channels_in, axes, clinical)


def derived_parameters(net: DerivedNet, channels_in: int, axes: int, *, clinical: int = 0) -> int:
    """Parameters of a derived network; arguments as for `supernet_parameters`.

    Example:
      >>> from fusion_jax.nas.genotype import DARTS_V1
      >>> derived_parameters(DerivedNet(DARTS_V1, ("pet", "ct")), channels_in=1, axes=3)
      559874
    """

    def cell(table: str, kind: str, channels: int, before: bool, channels_in: list[int]) -> tuple[int, int]:
        derived = _derived_cell(net, table, kind, channels, before)
        return derived_cell_parameters(derived, channels_in, axes), len(derived.concat) * channels

    return _parameters(net, cell, channels_in, axes, clinical)


def _parameters(net: Network, cell: Callable[..., tuple[int, int]], images: int, axes: int, clinical: int) -> int:
    affine = 2 * (net.norm != "none")
    stem = net.channels * net.stem_multiplier
    count = len(net.sources)
    total = (count + (count > 1)) * stem * (3**axes * images + _stem_bias(net) + affine)
    tables = cell_tables(net.layout, count)
    channels, reduced, widths = net.channels, False, [stem]
    for number, (table, kind) in enumerate(tables):
        channels *= 2 if kind == "R" else 1
        added, width = cell(table, kind, channels, reduced, widths[-2:] if number else [stem] * max(2, count))
        total += added
        widths.append(width)
        reduced = kind == "R"
        if isinstance(net, DerivedNet) and net.auxiliary and number == _auxiliary_after(len(tables)):
            total += AUXILIARY_WIDTH * (width + affine) + (AUXILIARY_WIDTH + 1) * net.outputs
    width = widths[-1]
    for out in net.head:
        total += out * (3**axes * width + affine)
        width = out
    return total + (width + clinical + 1) * net.outputs
