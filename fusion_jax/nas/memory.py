"""How much memory a search will take, said before anything is compiled, and which settings would fit instead."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fusion_jax.nas.operations import KINDS
from fusion_jax.nas.supernet import SuperNet, cell_tables, supernet_parameters

__all__ = ["MemoryEstimate", "available_memory", "check_memory", "fitting_settings", "memory_estimate"]

Order = Literal["first", "second"]

WORKING = 2.0
"""Maps that the way back holds for every map of what it is at work on: the map itself and its gradient."""

MEASURED = 1.5
"""Memory that XLA:CPU asks for, over these counts: 230.9 MB at 32^3 and 770.0 MB at 48^3 (layout "N", two nodes, four
channels, ten operations) are both 1.49 times as much."""

COPIES: Mapping[str, int] = {"first": 5, "second": 9}
"""Trees of the size of the weights: they, momentum, gradient and their successors; what looks ahead in the second."""

TANGENTS = 2.6
"""The product of the second order carries a tangent beside every map, and more beside that: XLA:CPU plans 115 MiB where
44 are counted for the first order (32^3), and 3,539 where 1,427 are (112 x 112 x 144)."""

KEEP = 0.85
"""Share of the memory that is free which a search may plan with: estimates are off by a quarter."""

SHOWN = 4
"""Settings that a message names."""


class MemoryEstimate(NamedTuple):
    """Bytes that one step of a search needs at its peak.

    Attributes:
      weights: parameters, their gradients and the optimiser's buffers.
      kept: maps that the way forward leaves for the way back.
      working: maps of what the way back is at work on.
      data: images of both batches.
    """

    weights: int
    kept: int
    working: int
    data: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(self)


class _Cell(NamedTuple):
    """Values of one mixed cell, for one case.

    Attributes:
      outer: of the maps that enter operations and of the nodes.
      groups: of what is computed between, of the edges that leave one map; one number a map.
      largest: of what is computed between, of the largest single unit of operations.
    """

    outer: float
    groups: tuple[float, ...]
    largest: float


def memory_estimate(
    net: SuperNet,
    shape: Sequence[int],
    batch_size: int,
    order: Order = "first",
    *,
    platform: str | None = None,
) -> MemoryEstimate:
    r"""Memory of one step of a search, in closed form.

    With the values :math:`v_m` of everything that is computed on the edges that leave map :math:`m`, and the values
    :math:`u` of cells' inputs and nodes, the way back finds

    =========  ==============================  ===========================================
    remat      kept                            at work on
    =========  ==============================  ===========================================
    none       :math:`u + \sum_m v_m`          the largest :math:`v_m`
    edge       :math:`u`                       the largest :math:`v_m`, computed again
    operation  :math:`u`                       its largest operations
    cell       inputs of cells only            one cell's :math:`u`, and its largest operations
    =========  ==============================  ===========================================

    The second order adds a tangent to every map and to every weight, 2.6 times as much in all as the first. On the CPU
    the compiler keeps what it was told to compute again: at 48^3 all values of `remat` measured the same 770.0 MB, so
    the first row counts there whatever `remat` says. On accelerators the other rows are counts that no measurement has
    confirmed yet.

    Args:
      net: that is searched.
      shape: of one image, `(*space, channels)`.
      batch_size: cases of a batch.
      order: of the search.
      platform: "cpu", "gpu" or "tpu"; the one in use by default.

    Returns:
      Bytes by part.

    Example:
      >>> full = SuperNet(("pet", "ct"), stem_stride=1, remat="none")
      >>> strided = SuperNet(("pet", "ct"), nodes=3, remat="edge")
      >>> shape = (112, 112, 144, 1)
      >>> [memory_estimate(net, shape, 1, platform="gpu").total > 11 * 2**30 for net in (full, strided)]
      [True, False]

    References:
      specs/mm_nas.md, section 5.2.
    """
    *space, channels_in = shape
    axes, width = len(space), jnp.dtype(net.dtype).itemsize
    positions = [math.ceil(side / net.stem_stride) for side in space]
    stems = len(net.sources) + (len(net.sources) > 1)
    stem_values = 3 * stems * net.channels * net.stem_multiplier * math.prod(positions)
    cells, inputs, channels = [], float(stem_values), net.channels
    for table, kind in cell_tables(net.layout, len(net.sources)):
        before = math.prod(positions)
        if kind == "R":
            channels *= 2
            positions = [math.ceil(side / 2) for side in positions]
        maps = max(len(net.sources), 2) if table == "first" else 2
        cells.append(_cell(net, channels, maps, before, math.prod(positions), axes))
        inputs += 2 * net.nodes * channels * math.prod(positions)
    inputs += sum(3 * width_of_head * math.prod(positions) for width_of_head in net.head)
    largest_group = max(max(cell.groups) for cell in cells)
    largest_unit = max(cell.largest for cell in cells)
    outer = sum(cell.outer for cell in cells)
    kept, working = {
        "none": (inputs + outer + sum(sum(cell.groups) for cell in cells), largest_group),
        "edge": (inputs + outer, largest_group),
        "operation": (inputs + outer, largest_unit),
        "cell": (inputs, max(cell.outer for cell in cells) + largest_unit),
    }["none" if (platform or jax.default_backend()) == "cpu" else net.remat]
    tangents = TANGENTS if order == "second" else 1.0
    scale = MEASURED * batch_size * width * tangents
    parameters = supernet_parameters(net, channels_in, axes)
    return MemoryEstimate(
        weights=4 * COPIES[order] * parameters,
        kept=round(scale * kept),
        working=round(scale * WORKING * working),
        data=2 * 4 * batch_size * (len(net.sources) + 1) * math.prod(shape),
    )


def _cell(net: SuperNet, channels: int, inputs: int, before: int, after: int, axes: int) -> _Cell:
    """Values of a mixed cell; `before` and `after` are positions of its inputs and of its nodes."""
    mixed = channels // net.partial
    outer, groups, largest = 0.0, [], 0.0
    for number in range(inputs + net.nodes - 1):
        first = max(number - inputs + 1, 0)
        edges = net.nodes - first
        entering = before if number < inputs and net.reduce_at == "edges" else after
        # The preprocessed input or the node, and its rectified copy.
        outer += 2 * channels * entering
        by_unit: dict[Any, float] = {}
        for name in net.operations:
            stored, each_edge = _stored(name, strided=entering != after)
            unit = KINDS[name][1:] if name in KINDS else name
            by_unit[unit] = by_unit.get(unit, 0.0) + stored * mixed * after * (edges if each_edge else 1)
        groups.append(sum(by_unit.values()))
        largest = max(largest, *by_unit.values())
    outer += net.nodes * channels * after
    return _Cell(outer, tuple(groups), largest)


def _stored(name: str, *, strided: bool) -> tuple[int, bool]:
    """Maps that an operation leaves behind, and whether every edge has its own.

    A convolution leaves its output and the normalised one; a separable one also what enters and leaves its second half.
    """
    if name == "none" or (name == "skip" and not strided):
        return 0, False
    if name in ("max_pool", "avg_pool"):
        return 2, False
    if name in KINDS and KINDS[name][0] == "sep":
        return 5, True
    return 2, True


def available_memory(device: Any = None) -> int | None:
    """Bytes that are free on a device: of an accelerator as it reports them, of the machine for the CPU.

    Args:
      device: the first one by default.

    Returns:
      Bytes, or None where the platform does not say.

    Example:
      >>> free = available_memory()
      >>> free is None or free > 0
      True
    """
    device = jax.devices()[0] if device is None else device
    if device.platform != "cpu":
        found = device.memory_stats() or {}
        return found["bytes_limit"] - found.get("bytes_in_use", 0) if "bytes_limit" in found else None
    free = [value for value in (_machine_free(), _group_free()) if value is not None]
    return min(free, default=None)


def _machine_free(path: str = "/proc/meminfo") -> int | None:
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def _group_free(folder: str = "/sys/fs/cgroup") -> int | None:
    """What the control group of a container leaves; None without a limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most, now = (Path(folder, name).read_text(encoding="ascii").strip() for name in (limit, used))
        except OSError:
            continue
        # Version 1 writes no limit as a number near 2^63.
        return int(most) - int(now) if most.isdigit() and int(most) < 2**60 else None
    return None


def check_memory(
    net: SuperNet,
    shape: Sequence[int],
    batch_size: int,
    order: Order = "first",
    *,
    available: int | None = None,
    platform: str | None = None,
    least_batch: int = 1,
) -> MemoryEstimate:
    """The estimate, or a refusal that names settings which would fit.

    Args:
      net, shape, batch_size, order, platform: as for `memory_estimate`.
      available: bytes to fit into; `available_memory()` by default, and anything fits where that is not known.
      least_batch: smallest batch that may be named.

    Raises:
      ValueError: too little memory; the message names the smallest changes that would fit.

    Example:
      >>> check_memory(SuperNet(("pet", "ct")), (32, 32, 32, 1), 1, available=2 * 2**30).total < 2 * 2**30
      True
    """
    estimate = memory_estimate(net, shape, batch_size, order, platform=platform)
    available = available_memory() if available is None else available
    if available is None or estimate.total <= KEEP * available:
        return estimate
    found = fitting_settings(
        net, shape, batch_size, order, available=available, platform=platform, least_batch=least_batch
    )
    names = [f"{_changes(changes)} ({_gib(total)})" for changes, total in found[:SHOWN]]
    way_out = (
        f"These would fit: {'; or '.join(names)}." if names else "Crop the images, or bring them to a coarser grid."
    )
    raise ValueError(
        f"The search needs about {_gib(estimate.total)} for a step on images of {' x '.join(map(str, shape[:-1]))} "
        f"(order {order}, batch_size {batch_size}, layout {net.layout}, nodes {net.nodes}, channels {net.channels}, "
        f"stem_stride {net.stem_stride}, remat {net.remat}), and {_gib(available)} are free. {way_out}"
    )


def fitting_settings(
    net: SuperNet,
    shape: Sequence[int],
    batch_size: int,
    order: Order = "first",
    *,
    available: int,
    platform: str | None = None,
    least_batch: int = 1,
) -> list[tuple[dict[str, Any], int]]:
    """Changes to a search that make it fit, those of fewest settings first.

    Computing more again (`remat`) changes no result and comes first; a smaller batch, half precision on accelerators,
    partial channels, a strided stem, fewer channels and nodes, and the first order follow.

    Args:
      net, shape, batch_size, order, platform: as for `memory_estimate`.
      available: bytes to fit into.
      least_batch: smallest batch that is offered.

    Returns:
      Settings that change, and the bytes they take; empty where nothing fits.

    Example:
      >>> net = SuperNet(("pet", "ct"), stem_stride=1, nodes=3)
      >>> fitting_settings(net, (96, 96, 96, 1), 1, available=8 * 2**30, platform="cpu")[0][0]
      {'partial': 2}
    """
    platform = platform or jax.default_backend()
    choices: list[dict[str, Any]] = []
    if platform != "cpu":
        choices += [{"remat": remat} for remat in ("edge", "operation", "cell") if remat != net.remat]
    choices += [{"batch_size": size} for size in (batch_size // 2, least_batch) if least_batch <= size < batch_size]
    if platform != "cpu" and jnp.dtype(net.dtype) != jnp.bfloat16:
        choices.append({"dtype": "bfloat16"})
    choices += [{"partial": k} for k in (2, 4) if k > net.partial]
    choices += [{"stem_stride": stride} for stride in (2, 4) if stride > net.stem_stride]
    choices += [{"channels": size} for size in (net.channels // 2,) if size >= 2]
    choices += [{"nodes": count} for count in (3, 2) if count < net.nodes]
    if order == "second":
        choices.append({"order": "first"})
    pairs = [
        first | second
        for place, first in enumerate(choices)
        for second in choices[place + 1 :]
        if not set(first) & set(second)
    ]
    triples = [pair | third for pair in pairs for third in choices if not set(pair) & set(third)]
    for candidates in (choices, pairs, triples):
        found = []
        for changes in candidates:
            if changes.get("channels", net.channels) % changes.get("partial", net.partial):
                continue
            total = _changed(net, shape, batch_size, order, changes, platform)
            if total <= KEEP * available and changes not in [known for known, _ in found]:
                found.append((changes, total))
        if found:
            return found
    return []


def _changed(
    net: SuperNet, shape: Sequence[int], batch_size: int, order: Order, changes: Mapping[str, Any], platform: str
) -> int:
    own: dict[str, Any] = {"batch_size": batch_size, "order": order} | dict(changes)
    size, other = own.pop("batch_size"), own.pop("order")
    if "dtype" in own:
        own["dtype"] = jnp.bfloat16
    return memory_estimate(net.clone(**own), shape, size, other, platform=platform).total


def _changes(changes: Mapping[str, Any]) -> str:
    words = {"dtype": "half precision", "batch_size": "batches of"}
    return ", ".join(
        f"{words[name]} {value}" if name in words else f"{name}={value}" for name, value in changes.items()
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
