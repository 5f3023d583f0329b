"""Synthetic chest X-rays whose opacities look alike: what they are, the vitals tell, or nothing does."""

import dataclasses
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from fusion_jax.data.synthetic.chest import (
    LESIONS,
    SPLITS,
    TRIAGE_LAWS,
    DrawnCases,
    Lesion,
    Radiographs,
    cases_of_splits,
    triage_table,
)
from fusion_jax.data.synthetic.draws import (
    case_stream,
    checked_n,
    column_stream,
    normal_scores,
    proportional,
    shuffled_levels,
)
from fusion_jax.data.synthetic.fields import blend, edge
from fusion_jax.data.synthetic.truth import Synthetic, Truth

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["OPACITIES", "TELLING_VITALS", "chest_opacities", "opacity_posterior", "oracle_detections"]

OPACITIES = ("pleural_abnormality", "consolidation", "pulmonary_edema")
"""Lesions of one appearance and one place."""

SHIFTS = {
    "temperature_f": (-0.5, 1.0, -0.5),
    "heartrate_bpm": (-0.5, -0.5, 1.0),
    "resprate_per_min": (-1.0, 0.0, 1.0),
    "o2sat_percent": (1.0, 0.0, -1.0),
}
"""Mean of a vital in standard deviations of its noise at strength 1, by `OPACITIES`."""

TELLING_VITALS = tuple(SHIFTS)
"""Vitals that differ between the opacities; age, blood pressure, pain, acuity and gender never do."""

NONE, SHARES = 3, (3, 3, 3, 1)
"""Code of a case without an opacity, and cases of each opacity and without."""

ALONE = 0.3
"""Share of cases with an enlarged heart, and with an atelectasis, which the image tells."""


def chest_opacities(
    n: int = 400,
    *,
    size: int = 128,
    seed: int = 0,
    vitals: Literal["informative", "uninformative"] = "informative",
    strength: float = 2.0,
) -> Synthetic:
    r"""Chest X-rays with five kinds of lesions, three of which look alike and differ in the patient's vitals only.

    A case has one of the `OPACITIES` (9 of 10 cases, each as often, in one lung or in both) and, each with probability
    0.3 and independent of everything, an enlarged heart and an atelectasis. The three opacities are drawn by one law,
    which does not know which of them it draws: given the image, each is as likely as the others. Heart and atelectasis
    look like nothing else. Of a case with opacity :math:`o`, a vital :math:`v` has the score

    .. math:: z_v = s\, m_{vo} + e_v, \qquad e_v \sim N(0, 1)

    with strength :math:`s` and the means `SHIFTS` (0 without an opacity), scaled to variance 1 and to the published
    mean, spread, range, rounding and gaps of the vital. In the uninformative arm, :math:`o` is that of another case,
    drawn at random: images, boxes, classes, and the law of the vitals are the same in both arms, and the vitals of a
    case are independent of its image and of its boxes. Whatever a model gains from them there is an artefact.

    A detector that finds every box and orders its detections by the posterior of the class reaches these average
    precisions (`oracle_detections`; mean of 20 seeds of 2,000 cases, between seeds ± 0.005), at any overlap:

    | lesion | image alone, and both in the uninformative arm | with vitals, s = 1 | s = 2 | s = 3 |
    |---|---|---|---|---|
    | enlarged cardiac silhouette, atelectasis | 1 | 1 | 1 | 1 |
    | pleural abnormality | 0.351 | 0.885 | 0.994 | 1 |
    | consolidation | 0.352 | 0.829 | 0.992 | 1 |
    | pulmonary edema | 0.351 | 0.929 | 0.999 | 1 |
    | mean | 0.611 | 0.929 | 0.997 | 1 |

    A class that is a third of all detections reaches a third and, at the few first detections, by chance more: 0.37 in
    400 cases. Of 20,000 cases with an opacity, the posterior names 0.797, 0.967 and 0.995 of the opacities (s = 1, 2,
    3); a logistic regression of the rounded, cut and mean-filled table 0.790, 0.958 and 0.988, and in the uninformative
    arm 0.34.

    Not realistic: see `chest_xray`; a patient's vitals do not depend on age, on gender or on each other.

    Args:
      n: number of images, at least 40.
      size: height and width of the images in pixels; at 96, lesions are 15 to 53 pixels wide and 7 to 38 high.
      seed: of all draws.
      vitals: which arm.
      strength: of the vitals; 0 tells nothing, as the other arm.

    Returns:
      A cohort as that of `chest_xray`; `hidden` has `opacity` (index into `OPACITIES`, 3 without), `vitals_of` (the
      opacity that the vitals were drawn from), `posterior` (of the opacities given the vitals and that there is one,
      shape `(n, 3)`), `contrast` and `scores`.

    Raises:
      ValueError: fewer than 40 images or 64 pixels, another arm, or a negative or infinite strength.

    Example:
      >>> cohort, truth = chest_opacities(40, size=64)
      >>> other = chest_opacities(40, size=64, vitals="uninformative").cohort
      >>> bool((cohort.sources["image"][7] == other.sources["image"][7]).all())
      True
      >>> bool((cohort.table["resprate_per_min"] == other.table["resprate_per_min"]).all())
      False
    """
    n = checked_n(n, 40, "chest_opacities")
    cases, split = cases_of_splits(n, size)
    if vitals not in ("informative", "uninformative"):
        raise ValueError(f"vitals are {vitals!r}; expected 'informative' or 'uninformative'.")
    if not (np.isfinite(strength) and strength >= 0):
        raise ValueError(f"strength is {strength}; expected 0 or more.")
    opacity = np.zeros(n, np.int64)
    label = np.zeros((n, len(LESIONS)), np.int64)
    for part, name in enumerate(SPLITS):
        own = split == part
        opacity[own] = shuffled_levels(proportional(SHARES, int(cases[part])), column_stream(seed, f"{name} opacity"))
        for lesion in ("enlarged_cardiac_silhouette", "atelectasis"):
            counts = proportional([1 - ALONE, ALONE], int(cases[part]))
            label[own, LESIONS.index(lesion)] = shuffled_levels(counts, column_stream(seed, f"{name} {lesion}"))
    for number, lesion in enumerate(OPACITIES):
        label[:, LESIONS.index(lesion)] = opacity == number
    vitals_of = opacity
    if vitals == "uninformative":
        vitals_of = column_stream(seed, "vitals of another case").permutation(opacity)
    scores = _scores(vitals_of, strength, seed)
    table = triage_table(scores, n, seed)
    if vitals == "uninformative":
        told, evidence = np.full((n, len(OPACITIES)), 1 / len(OPACITIES)), np.zeros(label.shape)
    else:
        told, evidence = opacity_posterior(scores, table, strength), _evidence(scores, table, strength)
    drawn = DrawnCases(n, cases, label, table, seed, size)
    cohort, order, contrast = drawn.cohort(_Opacities, "chest_opacities", f"synthetic chest opacities, {vitals} vitals")
    hidden = {"opacity": opacity, "vitals_of": vitals_of, "posterior": told, "scores": scores}
    hidden = {name: values[order] for name, values in hidden.items()} | {"contrast": contrast}
    return Synthetic(cohort, Truth(LESIONS, label[order], {"clinical": evidence[order]}, None, hidden))


def oracle_detections(synthetic: Synthetic, *, vitals: bool) -> "pandas.DataFrame":
    """What the best detector would find that localises every lesion of `chest_opacities` and sees what the image tells.

    Heart and atelectasis are found with score 1. An opacity is found three times, once as each of `OPACITIES`, with the
    posterior of the class as score: given the vitals, or without them a third.

    Args:
      synthetic: from `chest_opacities`.
      vitals: whether it reads them.

    Returns:
      A table of detections, as `fusion-jax evaluate-boxes` reads it.

    Example:
      >>> synthetic = chest_opacities(40, size=64)
      >>> found = oracle_detections(synthetic, vitals=False)
      >>> sorted(set(found["score"].round(3)))
      [0.333, 1.0]
    """
    import pandas as pd

    cohort, truth = synthetic
    posterior = truth.hidden["posterior"] if vitals else np.full((len(cohort), len(OPACITIES)), 1 / len(OPACITIES))
    alike = [LESIONS.index(lesion) for lesion in OPACITIES]
    rows = []
    for case, boxes, told in zip(cohort.case_id, cohort.boxes or (), posterior, strict=True):
        for corners, kind in zip(boxes.corners, boxes.classes, strict=True):
            chances = dict(zip(OPACITIES, told, strict=True)) if kind in alike else {LESIONS[int(kind)]: 1.0}
            rows += [(case, *corners, lesion, float(chance)) for lesion, chance in chances.items()]
    return pd.DataFrame(rows, columns=["case_id", "x0", "y0", "x1", "y1", "class", "score"])


def opacity_posterior(
    scores: Float[np.ndarray, "n v"], table: "pandas.DataFrame", strength: float
) -> Float[np.ndarray, "n 3"]:
    """Posterior of each opacity given that there is one and the scores of the vitals that are not missing.

    Args:
      scores: of the vitals, variance 1, shape `(n, v)`.
      table: of the same cases, by which cells are missing.
      strength: as in `chest_opacities`.
    """
    from scipy.special import softmax

    return softmax(_log_density(scores, table, strength)[:, :NONE], axis=1)


def _means(strength: float) -> Float[np.ndarray, "4 v"]:
    means = np.zeros((len(SHARES), len(TRIAGE_LAWS)))
    for name, shifts in SHIFTS.items():
        means[:NONE, list(TRIAGE_LAWS).index(name)] = strength * np.array(shifts)
    return means


def _spread(strength: float) -> Float[np.ndarray, "v"]:
    """Standard deviation of a score over all cases; the means of the shifts are 0."""
    shares = np.array(SHARES) / sum(SHARES)
    return np.sqrt(1 + shares @ np.square(_means(strength)))


def _scores(opacity: Int[np.ndarray, "n"], strength: float, seed: int) -> Float[np.ndarray, "n v"]:
    noise = np.stack([normal_scores(len(opacity), column_stream(seed, name)) for name in TRIAGE_LAWS], axis=1)
    return (_means(strength)[opacity] + noise) / _spread(strength)


def _log_density(
    scores: Float[np.ndarray, "n v"], table: "pandas.DataFrame", strength: float
) -> Float[np.ndarray, "n 4"]:
    """Of the vitals that are there, under each opacity and under none, up to a constant of the case."""
    there: Bool[np.ndarray, "n v"] = table[list(TRIAGE_LAWS)].notna().to_numpy()
    away = (scores * _spread(strength))[:, None] - _means(strength)
    squares: np.ndarray = np.where(there[:, None], np.square(away), 0.0)
    return -0.5 * squares.sum(axis=-1)


def _evidence(scores: Float[np.ndarray, "n v"], table: "pandas.DataFrame", strength: float) -> Float[np.ndarray, "n k"]:
    """Log-likelihood ratio of each lesion given the vitals; 0 of those that they do not depend on."""
    shares = np.log(np.array(SHARES) / sum(SHARES))
    log_density = _log_density(scores, table, strength)
    evidence = np.zeros((len(scores), len(LESIONS)))
    for number, lesion in enumerate(OPACITIES):
        others = [other for other in range(len(SHARES)) if other != number]
        without = np.logaddexp.reduce(log_density[:, others] + shares[others], axis=1)
        without -= np.logaddexp.reduce(shares[others])
        evidence[:, LESIONS.index(lesion)] = log_density[:, number] - without
    return evidence


@dataclasses.dataclass(frozen=True, eq=False)
class _Opacities(Radiographs):
    """Chest X-rays on which the three opacities are drawn alike."""

    def plan(self, row: int) -> list[Lesion]:
        """Lesions of a case; nothing but its class depends on which opacity it is."""
        rng = case_stream(self.seed, row, "opacities")
        sides = rng.permutation([-1, 1])
        a, b, c, d, e, f, g = rng.random(7)
        contrast = rng.uniform(0.6, 1.0, 3)
        both = bool(rng.random() < 0.3)
        plan = []
        for kind in np.flatnonzero(self.label[row]):
            if LESIONS[kind] == "enlarged_cardiac_silhouette":
                plan.append(Lesion(0, *self.heart(row), float(contrast[0])))
            elif LESIONS[kind] == "atelectasis":
                x = 0.5 + sides[1] * (0.16 + 0.03 * b)
                plan.append(Lesion(int(kind), 0.21 + 0.05 * a, x, 0.036 + 0.012 * c, 0.085, float(contrast[1])))
            else:
                for side in sides if both else sides[:1]:
                    x = 0.5 + side * (0.185 + 0.025 * e)
                    plan.append(
                        Lesion(int(kind), 0.42 + 0.05 * d, x, 0.095 + 0.03 * f, 0.08 + 0.02 * g, float(contrast[2]))
                    )
        return plan

    def draw_lesion(
        self,
        image: np.ndarray,
        lesion: Lesion,
        y: np.ndarray,
        x: np.ndarray,
        lungs: np.ndarray,
        coarse: np.ndarray,
        fine: np.ndarray,
    ) -> np.ndarray:
        """The image with one lesion, whatever its name if it is an opacity."""
        if LESIONS[lesion.kind] == "enlarged_cardiac_silhouette":
            return image  # drawn with the anatomy
        v, u = (y - lesion.y) / lesion.ry, (x - lesion.x) / lesion.rx
        inside = edge((np.sqrt(u**2 + v**2) - 1) * min(lesion.ry, lesion.rx), 0.012)
        if LESIONS[lesion.kind] == "atelectasis":
            return blend(image, 0.78, (0.4 + 0.5 * lesion.contrast) * inside * lungs)
        return blend(image, 0.6 + 0.05 * fine + 0.03 * coarse, (0.35 + 0.55 * lesion.contrast) * inside * lungs)
