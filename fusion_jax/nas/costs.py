"""What a cell is expected to cost while it is a mixture: a differentiable penalty on the architecture."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fusion_jax.arrays import Array, ArrayLike
from fusion_jax.nas.genotype import edges_of
from fusion_jax.nas.operations import operation_multiply_adds, operation_parameters
from fusion_jax.nas.supernet import cell_tables

__all__ = ["Cost", "expected_cost", "operation_costs"]

Cost = Literal["parameters", "multiply-adds"]


def operation_costs(
    layout: str,
    operations: Sequence[str],
    *,
    nodes: int,
    channels: int,
    axes: int,
    inputs: int = 2,
    cost: Cost = "parameters",
) -> dict[str, np.ndarray]:
    r"""Share of the largest possible cost that every candidate on every edge has, summed over the cells of its table.

    Channels double at every reduction; multiply-adds shrink with the positions. The shares of the dearest operation of
    every edge add up to 1 over all tables, so that one penalty means the same for any space.

    Args:
      layout: "N" and "R" in turn.
      operations: candidates, in the order of the columns.
      nodes: of a cell.
      channels: of a node in the first cell.
      axes: spatial axes.
      inputs: of the first cell; above two it has a table of its own.
      cost: what is counted: parameters, or multiplications with a weight.

    Returns:
      Table to shares, shape `(edges, operations)`.

    Raises:
      ValueError: an unknown cost, or candidates none of which costs anything.

    Example:
      >>> shares = operation_costs("NR", ("none", "conv3", "dil3"), nodes=2, channels=4, axes=3)
      >>> shares["normal"].shape, round(sum(float(table.max(axis=1).sum()) for table in shares.values()), 6)
      ((5, 3), 1.0)

    References:
      Expected cost of the mixture: Cai et al. 2019 (ProxylessNAS), Eq. 3; parameter counts of specs/mm_nas.md, 5.2.
    """
    if cost not in ("parameters", "multiply-adds"):
        raise ValueError(f"cost is {cost!r}; expected 'parameters' or 'multiply-adds'.")
    tables: dict[str, np.ndarray] = {}
    width, positions = channels, 1.0
    for table, kind in cell_tables(layout, inputs):
        reduces = kind == "R"
        width *= 2 if reduces else 1
        own = inputs if table == "first" else 2
        rows = []
        for source, _ in edges_of(nodes, own):
            stride = 2 if reduces and source < own else 1
            # Edges between the nodes of a reduction see what its own strides have left.
            seen = positions / 2**axes if reduces and source >= own else positions
            rows.append([_cost(name, width, axes, stride, seen, cost) for name in operations])
        tables[table] = tables.get(table, 0.0) + np.array(rows, np.float64)
        positions /= 2**axes if reduces else 1
    most = sum(float(table.max(axis=1).sum()) for table in tables.values())
    if most == 0:
        raise ValueError(
            f"none of the operations {', '.join(operations)} has {cost}; expected one for a penalty to weigh. Set the "
            "penalty to 0."
        )
    return {name: table / most for name, table in tables.items()}


def expected_cost(
    architecture: Mapping[str, Float[ArrayLike, "..."]], costs: Mapping[str, Float[np.ndarray, "k o"]]
) -> Float[Array, ""]:
    r"""Cost of the mixture that the logits stand for.

    .. math:: C(\alpha) = \sum_{t} \sum_{e,o} \operatorname{softmax}(\alpha^t_e)_o\, c^t_{eo}

    Args:
      architecture: logits by table, `(edges, operations)`; other entries, such as weights of edges, are not read.
      costs: from `operation_costs`.

    Returns:
      Between 0 (every edge decided for what is free) and 1 (for the dearest).

    Example:
      >>> costs = {"normal": np.array([[0.0, 1.0]])}
      >>> float(expected_cost({"normal": jnp.zeros((1, 2))}, costs))
      0.5
    """
    terms = []
    for name, table in costs.items():
        logits = jnp.asarray(architecture[name])
        terms.append(jnp.sum(jax.nn.softmax(logits, axis=-1) * jnp.asarray(table, logits.dtype)))
    return sum(terms[1:], terms[0])


def _cost(name: Any, width: int, axes: int, stride: int, positions: float, cost: Cost) -> float:
    if cost == "parameters":
        return float(operation_parameters(name, width, axes, stride=stride, affine=False))
    return positions * operation_multiply_adds(name, width, axes, stride=stride)
