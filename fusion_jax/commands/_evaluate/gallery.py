"""Cases that were decided rightly and wrongly, with their image, clinical values and every model's score."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusion_jax.data.cohort import Cohort
from fusion_jax.evaluation.assembly import Evaluation
from fusion_jax.evaluation.reclassification import outcome_names
from fusion_jax.reporting.contact_sheet import Tile, contact_sheet, picture_of
from fusion_jax.reporting.html import Section

__all__ = ["gallery"]

OUTCOMES = {
    "FN": "missed (false negatives)",
    "FP": "called in vain (false positives)",
    "TP": "found (true positives)",
    "TN": "left alone (true negatives)",
}
CLINICAL = 3


def gallery(found: Evaluation, cohort: Cohort, count: int) -> Section:
    """A sheet of cases for every outcome of one model's decisions.

    Cases are drawn by the seed of the evaluation, not chosen: a gallery of the worst is no sample of the errors.

    Args:
      found: of two classes, judged by case.
      cohort: that holds the cases.
      count: cases of each outcome.

    Raises:
      ValueError: rows that are no cases of the cohort, or no image in it.
    """
    panel = found.panel
    labels: Any = panel.labels
    if not found.rules or panel.level != "case":
        raise ValueError("--gallery shows cases of two classes; judge cases (--level case) of two classes.")
    place: dict[Any, int] = {case: row for row, case in enumerate(cohort.case_id)}
    strange = [case for case in panel.cases if case not in place]
    if strange:
        raise ValueError(
            f"the cohort {cohort.name} has no case {strange[0]!r}; --gallery needs all that were predicted."
        )
    images = [name for name, source in cohort.sources.items() if source.kind == "image"]
    if not images:
        raise ValueError(f"the cohort {cohort.name} has no image to show; leave --gallery out.")
    name, rule = images[0], found.rules[0]
    model = found.benefits[0].model if found.benefits else found.view.models[-1]
    outcomes = outcome_names(labels, rule.decisions[found.view.models.index(model)])
    rng = np.random.default_rng([found.protocol.seed, len(panel)])
    shown = list(cohort.columns("input"))[:CLINICAL]
    items = []
    for outcome, words in OUTCOMES.items():
        rows = np.flatnonzero(outcomes == outcome)
        chosen = np.sort(rng.permutation(rows)[:count])
        if not len(chosen):
            continue
        tiles = [_tile(found, cohort, name, int(row), place[panel.cases[row]], shown) for row in chosen]
        items.append(contact_sheet(tiles, caption=f"{len(chosen)} of {len(rows)} cases {words} by {model}."))
    text = [
        (
            f"Cases drawn at random from each outcome of {model}, threshold {rule.origin}; below each its label, "
            "clinical values and the score of every model."
        )
    ]
    return Section("Cases", text, items)


def _tile(found: Evaluation, cohort: Cohort, name: str, row: int, at: int, shown: Sequence[str]) -> Tile:
    labels: Any = found.panel.labels
    lines = [f"label {found.panel.classes[labels[row]]}"]
    lines += [f"{column} {_cell(cohort, column, at)}" for column in shown]
    lines += [f"{model} {found.view.scores[index, row]:.3f}" for index, model in enumerate(found.view.models)]
    title = str(found.panel.units[row])
    nothing = Tile(np.zeros((0, 0, 1), np.uint8), title, ["no image", *lines])
    if not cohort.present[name][at]:
        return nothing
    picture, _, aspect = picture_of(cohort.image(name, at))
    return Tile(picture, title, lines, aspect=aspect)


def _cell(cohort: Cohort, column: str, row: int) -> str:
    value: Any = cohort.table[column].iloc[row]
    if value is None or value != value:
        return "missing"
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)
