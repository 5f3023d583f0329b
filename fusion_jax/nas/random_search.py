"""The control of every search: cells drawn at random, with the same budget and judged by the same patients."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fusion_jax.nas.genotype import Genotype, genotype_from_json, genotype_to_json, random_genotype, write_genotype
from fusion_jax.nas.search import GENOTYPE
from fusion_jax.records import write_json

__all__ = ["RandomSearch", "random_search"]

LOG = logging.getLogger("fusion_jax.nas.random_search")


class RandomSearch(NamedTuple):
    """What a random search ended with.

    Attributes:
      genotype: of the smallest loss.
      losses: of every draw, in their order; NaN where training diverged.
      drawn: all genotypes, in their order.
    """

    genotype: Genotype
    losses: tuple[float, ...]
    drawn: tuple[Genotype, ...]


def random_search(
    judge: Callable[[Genotype, Path], float],
    *,
    draws: int,
    nodes: int,
    operations: Sequence[str],
    inputs: int = 2,
    seed: int,
    folder: str | Path,
) -> RandomSearch:
    """Draw cells at random and keep the best.

    A draw that was judged is not judged again, so that a search which was killed goes on. With one draw this is the
    random architecture that a searched one has to beat; with more, random search of the same budget.

    Args:
      judge: `judge(genotype, folder) -> loss` on validation patients, such as that of a network trained for a few
        epochs; the folder is the draw's own. It may raise nothing but what should end the search.
      draws: how many cells.
      nodes, operations, inputs: as for `random_genotype`.
      seed: of the draws.
      folder: gets `draw_<number>/judged.json` for every draw, and `genotype.json`.

    Returns:
      The best genotype, all genotypes and their losses.

    Raises:
      ValueError: no draw, a loss that is never a number, or a folder of another random search.

    Example:
      >>> import tempfile
      >>> def skips(genotype, folder):
      ...     return float(sum(operation == "skip" for operation, _ in genotype.normal))
      >>> found = random_search(skips, draws=8, nodes=1, operations=("none", "skip", "conv3"), seed=0,
      ...                       folder=tempfile.mkdtemp())
      >>> skips(found.genotype, None) == min(found.losses), len(found.drawn)
      (True, 8)

    References:
      Li and Talwalkar 2019, "Random search and reproducibility for neural architecture search".
    """
    if draws < 1:
        raise ValueError(f"draws is {draws}; expected 1 or more.")
    folder = Path(folder)
    drawn, losses = [], []
    for number in range(draws):
        # One stream a draw: more draws later leave the first ones as they were.
        genotype = random_genotype(np.random.default_rng([seed, number]), nodes, operations, inputs)
        own = folder / f"draw_{number:03d}"
        losses.append(_judged(judge, genotype, own))
        drawn.append(genotype)
        LOG.info("%s: loss %.4f", own, losses[-1])
    if all(np.isnan(losses)):
        raise ValueError(
            f"{folder}: the loss of all {draws} draws is not a number. Lower the learning rate of training."
        )
    best = int(np.nanargmin(losses))
    write_genotype(folder / GENOTYPE, drawn[best], {"draw": best, "draws": draws, "seed": seed, "loss": losses[best]})
    return RandomSearch(drawn[best], tuple(losses), tuple(drawn))


def _judged(judge: Callable[[Genotype, Path], float], genotype: Genotype, folder: Path) -> float:
    path = folder / "judged.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if genotype_from_json(found["genotype"], str(path)) != genotype:
            raise ValueError(
                f"{path}: holds another genotype than this draw; expected a folder of the same seed, nodes and "
                "operations. Search in an empty folder."
            )
        return float("nan") if found["loss"] is None else float(found["loss"])
    loss = float(judge(genotype, folder))
    write_json(path, {"genotype": genotype_to_json(genotype), "loss": None if np.isnan(loss) else loss})
    return loss
