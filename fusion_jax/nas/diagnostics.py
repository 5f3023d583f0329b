"""How a search is going: how decided it is, how many skips it would keep, how sharp its optimum has become.

Architectures are plain arrays here, and every function is cheap next to an epoch.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.special import softmax

from fusion_jax.nas.genotype import CELLS, derive, genotype_to_json, skip_share

__all__ = ["LEAST_MEASURED", "Collapse", "collapsed", "describe_architecture", "eligible_epochs", "mixing_entropy"]

Collapse = Literal["none", "skips", "eigenvalue"]
"""Rule that ends a search: never; skips in the normal cell; a rising eigenvalue."""

SKIPS = 2
"""Skips in the normal cell that DARTS+ calls a collapse."""

HELD = 3
"""Epochs in a row that must have collapsed: while no row is decided yet, noise alone makes skips now and then."""

WINDOW = 5
"""Values over which the eigenvalue is averaged, and how far apart the two averages lie."""

LEAST_MEASURED = 2 * WINDOW
"""Measurements before which no eigenvalue rises."""

RISE = 0.75
"""Ratio of the earlier average to the newer one below which the eigenvalue rises."""


def mixing_entropy(logits: Float[np.ndarray, "k o"]) -> float:
    r"""Mean entropy of the edges in nats.

    .. math:: H = -\frac1k \sum_e \sum_o x_{eo} \log x_{eo}, \qquad x_e = \operatorname{softmax}(\alpha_e)

    The logarithm of the number of operations where nothing is decided, 0 where everything is.

    Example:
      >>> round(mixing_entropy(np.zeros((3, 10))), 4), round(float(np.log(10)), 4)
      (2.3026, 2.3026)
    """
    weights = softmax(np.asarray(logits, np.float64), axis=-1)
    return float(-np.mean(np.sum(weights * np.log(np.maximum(weights, 1e-300)), axis=-1)))


def describe_architecture(
    architecture: Mapping[str, Float[np.ndarray, "..."]], operations: Sequence[str], *, nodes: int
) -> dict[str, Any]:
    """A line for the log of a search: everything that follows from the logits alone, as JSON holds it.

    Args:
      architecture: logits, as `derive` takes them.
      operations: what the columns stand for.
      nodes: of a cell.

    Returns:
      `operations`; by table `weights` (softmax), `entropy` (nats an edge), `skip_share` (of the edges that the derived
      cell keeps) and `skip_weight` (mean share of "skip" in the mixture, where it is a candidate); `genotype`; and
      `logits`, of which float32 is read back to the bit.

    Example:
      >>> line = describe_architecture({"normal": np.zeros((2, 3))}, ("none", "skip", "conv3"), nodes=1)
      >>> line["genotype"]["normal"], line["skip_share"], round(line["entropy"]["normal"], 3)
      ([['skip', 0], ['skip', 1]], {'normal': 1.0}, 1.099)
    """
    genotype = derive(architecture, operations, nodes=nodes)
    tables = {name: np.asarray(architecture[name]) for name in CELLS if name in architecture}
    weights = {name: softmax(np.asarray(logits, np.float64), axis=-1) for name, logits in tables.items()}
    skip = list(operations).index("skip") if "skip" in operations else None
    return {
        "operations": list(operations),
        "weights": {name: table.tolist() for name, table in weights.items()},
        "entropy": {name: mixing_entropy(logits) for name, logits in tables.items()},
        "skip_share": {name: skip_share(getattr(genotype, name)) for name in tables},
        "skip_weight": {} if skip is None else {name: float(table[:, skip].mean()) for name, table in weights.items()},
        # As a file gives it back: lists, no tuples.
        "genotype": json.loads(json.dumps(genotype_to_json(genotype))),
        "logits": {name: np.asarray(values, np.float64).tolist() for name, values in architecture.items()},
    }


def eligible_epochs(lines: Sequence[Mapping[str, Any]], collapse: Collapse) -> list[int]:
    """Epochs whose architecture may be taken.

    - "none": all.
    - "skips": those whose normal cell (the first one, where no other is normal) keeps fewer than two skips (DARTS+).
    - "eigenvalue": those up to five measurements before the newest one, once the dominant eigenvalue has risen
      (R-DARTS); before that all.

    Args:
      lines: of the log, one an epoch.
      collapse: the rule.

    Returns:
      Positions in `lines`; none where every epoch has collapsed.

    Example:
      >>> cells = [{"normal": [["skip", 0], ["conv3", 1]]}, {"normal": [["skip", 0], ["skip", 1]]}]
      >>> eligible_epochs([{"genotype": cell} for cell in cells], "skips")
      [0]

    References:
      Liang et al. 2019 (DARTS+), section 3.3; Zela et al. 2020 (R-DARTS), section 4.3.
    """
    if collapse == "skips":
        return [place for place, line in enumerate(lines) if _skips(line) < SKIPS]
    if collapse == "eigenvalue":
        measured = _measured(lines)
        if _rises([value for _, value in measured]):
            last = measured[-1 - WINDOW][0]
            return list(range(last + 1))
    return list(range(len(lines)))


def collapsed(lines: Sequence[Mapping[str, Any]], collapse: Collapse) -> bool:
    """Whether the search should end after the last of these lines.

    - "skips": the last three epochs have collapsed, and one before them has not.
    - "eigenvalue": the mean of the last five eigenvalues exceeds that of the five before by a third.

    Args:
      lines: of the log, one an epoch.
      collapse: the rule.

    Example:
      >>> collapsed([{"eigenvalue": value} for value in [1, 1, 1, 1, 1, 1, 2, 2, 2, 2]], "eigenvalue")
      True

    References:
      As `eligible_epochs`.
    """
    if collapse == "skips":
        recent = [_skips(line) >= SKIPS for line in lines[-HELD:]]
        return len(recent) == HELD and all(recent) and bool(eligible_epochs(lines, collapse))
    if collapse == "eigenvalue":
        return _rises([value for _, value in _measured(lines)])
    return False


def _skips(line: Mapping[str, Any]) -> int:
    # The normal cell that takes more than two sources has a table of its own, and may be the only one.
    cell = line["genotype"]["normal"] or line["genotype"].get("first", ())
    return sum(operation == "skip" for operation, _ in cell)


def _measured(lines: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Place in the log and value of every eigenvalue that was measured."""
    return [(place, line["eigenvalue"]) for place, line in enumerate(lines) if line.get("eigenvalue") is not None]


def _rises(values: Sequence[float]) -> bool:
    if len(values) < LEAST_MEASURED:
        return False
    newer, earlier = float(np.mean(values[-WINDOW:])), float(np.mean(values[-2 * WINDOW : -WINDOW]))
    return newer > 0 and earlier / newer < RISE
