"""In which order an epoch visits its cases: pure functions of seed and epoch."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int, Shaped

__all__ = ["Sampler", "epoch_order"]

Sampler = Literal["sequential", "shuffle", "balanced", "one per patient"]
"""`balanced` draws every class equally often, `one per patient` one case of each patient."""


def epoch_order(
    rows: Int[np.ndarray, "n"],
    sampler: Sampler,
    *,
    seed: Sequence[int],
    epoch: int,
    label: Int[np.ndarray, "n"] | None = None,
    patient: Shaped[np.ndarray, "n"] | None = None,
) -> Int[np.ndarray, "m"]:
    """Rows of one epoch in their order.

    - "sequential": as given. "shuffle": a permutation.
    - "balanced": n rows, each class n / k of them (to one), in random order. A class goes through its cases in one
      permutation after the other, so that every case of a class no larger than n / k is seen, and none twice before
      all were seen once; the next epoch goes on where a larger class stopped.
    - "one per patient": one random row of every patient, in random order.

    Args:
      rows: of the cohort, shape `(n,)`.
      sampler: which order.
      seed: of the run, such as (seed, repeat, fold); with `epoch` it decides everything.
      epoch: from 0.
      label: class of each row, needed by "balanced".
      patient: patient of each row, needed by "one per patient".

    Raises:
      ValueError: no rows, an unknown sampler, or one without what it needs.

    Example:
      >>> label = np.array([0, 0, 0, 0, 0, 1])
      >>> epoch_order(np.arange(6), "balanced", seed=(0,), epoch=0, label=label).tolist().count(5)
      3
    """
    if not len(rows):
        raise ValueError("no rows to sample from; expected at least one case.")
    if sampler not in get_args(Sampler):
        raise ValueError(f"sampler is {sampler!r}; expected one of {', '.join(get_args(Sampler))}.")
    rng = np.random.default_rng([*seed, epoch])
    if sampler == "sequential":
        return rows
    if sampler == "shuffle":
        return rng.permutation(rows)
    if sampler == "balanced":
        if label is None or len(label) != len(rows):
            raise ValueError("the balanced sampler needs the label of every row.")
        return _balanced(rows, label, seed, epoch, rng)
    if patient is None or len(patient) != len(rows):
        raise ValueError("the sampler of one case per patient needs the patient of every row.")
    shuffled = rng.permutation(len(rows))
    _, first = np.unique(patient[shuffled], return_index=True)
    return rng.permutation(rows[shuffled[first]])


def _balanced(
    rows: Int[np.ndarray, "n"],
    label: Int[np.ndarray, "n"],
    seed: Sequence[int],
    epoch: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, "n"]:
    classes = np.unique(label)
    drawn = []
    for number, code in enumerate(classes):
        members = rows[label == code]
        start, count = _share(len(rows), len(classes), number, epoch)
        if len(members) <= count:
            # A small class starts a permutation with every epoch, so that each epoch sees all of it.
            start = epoch * -(-count // len(members)) * len(members)
        position = start + np.arange(count)
        rounds = {
            number: np.random.default_rng([*seed, int(code), int(number), 1]).permutation(members)
            for number in np.unique(position // len(members))
        }
        drawn += [rounds[place // len(members)][place % len(members)] for place in position]
    return rng.permutation(np.array(drawn, rows.dtype))


def _share(rows: int, classes: int, number: int, epoch: int) -> tuple[int, int]:
    """How many rows a class had in all epochs before, and has in this one; the surplus of a division goes round."""
    each, surplus = divmod(rows, classes)
    gets_more = [(number + e) % classes < surplus for e in range(classes)]
    before = epoch * each + epoch // classes * surplus + sum(gets_more[: epoch % classes])
    return before, each + gets_more[epoch % classes]
