"""At which scores the models of a view call a row positive, and where those thresholds come from."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from fusion_jax.evaluation.panel import Panel, View
from fusion_jax.evaluation.protocol import Protocol
from fusion_jax.evaluation.thresholds import Operating, carried_over, decide, given, read_off
from fusion_jax.wording import listed

__all__ = ["CARRIED_OVER", "CONVENTION", "GIVEN", "READ_OFF", "Rule", "make_rules"]

GIVEN, CONVENTION, CARRIED_OVER, READ_OFF = "given", "0.5", "carried over", "test ROC"
CONVENTIONAL = 0.5


class Rule(NamedTuple):
    """How the scores of every model became decisions.

    Attributes:
      name: short, for tables: "given", "0.5", "carried over" or "test ROC".
      origin: where the thresholds come from, in words.
      operating: thresholds of each model, one for each fold where they were carried over.
      decisions: 1 where the score is at or above the threshold, shape `(m, n)`.
    """

    name: str
    origin: str
    operating: Mapping[str, Operating]
    decisions: Int[np.ndarray, "m n"]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader has to know, with the models it is about."""
        about: dict[str, list[str]] = {}
        for model, found in self.operating.items():
            for text in found.warnings:
                about.setdefault(text.rstrip("."), []).append(model)
        return tuple(f"{listed(models, 8)}: {text}." for text, models in about.items())


def make_rules(panel: Panel, view: View, protocol: Protocol) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    """Every operating point that the predictions allow, and why others are missing.

    The threshold that was given or, for probabilities, the conventional 0.5; the threshold that holds the target
    sensitivity on the validation rows of the same fold; and, labelled so, the one that is read off the test ROC.

    Args:
      panel: of two classes, with labels.
      view: one score for each model and row.
      protocol: target sensitivity, and the given threshold.

    Returns:
      The rules, and notes for the reader.

    Raises:
      ValueError: validation rows that cannot give a threshold, such as rows of one class; a given threshold that is no
        probability, for probabilities.
    """
    labels: Any = panel.labels
    rules, notes = [], []
    probabilities = all(panel.kinds[model] == "probability" for model in view.models)
    if protocol.threshold is not None:
        if probabilities and not 0 < protocol.threshold <= 1:
            raise ValueError(
                f"threshold {protocol.threshold:g} with probabilities, which logits have become: it would call every "
                "row the same. Give a probability, such as 0.5."
            )
        rules.append(_same(GIVEN, "given beforehand", protocol.threshold, view))
    elif probabilities:
        rules.append(_same(CONVENTION, "0.5, by convention; not chosen for these data", CONVENTIONAL, view))
    else:
        notes.append("Scores are no probabilities and no threshold was given: no decision is judged at a fixed one.")

    found = {model: view.validation.get(model) for model in view.models}
    if all(part is not None for part in found.values()):
        operating = {
            model: carried_over(
                part.labels,
                part.scores,
                rule="sensitivity",
                target=protocol.sensitivity,
                validation_folds=part.folds if view.folds is not None else None,
                folds=view.folds,
                validation_patients=part.patients,
            )
            for model, part in found.items()
            if part is not None
        }
        rules.append(_rule(CARRIED_OVER, operating, view))
    elif view.refused:
        notes.append(f"No threshold was carried over: {view.refused}.")
    elif any(part is not None for part in found.values()):
        without = next(model for model, part in found.items() if part is None)
        notes.append(f"No threshold was carried over: {without} has no validation rows, others have.")
    else:
        notes.append(
            "No threshold was carried over: the table has no validation rows. Figures at a threshold that is read off "
            "the test ROC are too good, as the threshold has seen the labels it is judged by."
        )
    operating = {
        model: read_off(labels, scores, rule="sensitivity", target=protocol.sensitivity, patients=panel.patients)
        for model, scores in zip(view.models, view.scores, strict=True)
    }
    rules.append(_rule(READ_OFF, operating, view, folds=False))
    return tuple(rules), tuple(notes)


def _same(name: str, origin: str, threshold: float, view: View) -> Rule:
    operating = dict.fromkeys(view.models, given(threshold))
    return Rule(name, origin, operating, (view.scores >= threshold).astype(int))


def _rule(name: str, operating: Mapping[str, Operating], view: View, *, folds: bool = True) -> Rule:
    decisions = [
        decide(operating[model], scores, view.folds if folds else None)
        for model, scores in zip(view.models, view.scores, strict=True)
    ]
    return Rule(name, next(iter(operating.values())).origin, operating, np.array(decisions).astype(int))
