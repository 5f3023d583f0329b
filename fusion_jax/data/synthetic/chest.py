"""Synthetic chest X-rays with five kinds of lesions, their boxes and masks, and triage vitals."""

import dataclasses
import itertools
import json
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from fusion_jax.data.cohort import Boxes, Cohort, Columns, Lazy, Role
from fusion_jax.data.image import Image
from fusion_jax.data.synthetic.draws import (
    case_stream,
    checked_n,
    column_stream,
    normal_scores,
    proportional,
    shuffled_levels,
    spread_over,
)
from fusion_jax.data.synthetic.fields import blend, edge, smooth_noise
from fusion_jax.data.synthetic.truth import Synthetic, Truth

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["LESIONS", "TRIAGE", "chest_xray"]

LESIONS = (
    "enlarged_cardiac_silhouette",
    "atelectasis",
    "pleural_abnormality",
    "consolidation",
    "pulmonary_edema",
)
SPLITS = ("train", "val", "test")
CASES = (468, 101, 101)
PATIENTS = 540
VIEWS = {"AP": 365, "PA": 305}
POSITIVE = np.array([(115, 91, 101, 71, 61), (21, 27, 17, 23, 14), (18, 25, 20, 18, 10)])
"""Positive cases by split and lesion."""

# Mean, standard deviation, lowest, highest, digits, missing of 670, unit. Means and missing counts are the published
# ones; the standard deviations are ours, as are the mean and standard deviation of age.
TRIAGE_LAWS = {
    "age_years": (62.0, 16.5, 18, 95, 0, 0, "years"),
    "temperature_f": (98.1, 0.95, 93.0, 105.0, 1, 75, "degF"),
    "heartrate_bpm": (85.7, 18.0, 35, 180, 0, 61, "beats/min"),
    "resprate_per_min": (18.5, 3.0, 8, 44, 0, 69, "breaths/min"),
    "o2sat_percent": (97.6, 2.3, 75, 100, 0, 65, "%"),
    "sbp_mmhg": (132.3, 23.5, 65, 235, 0, 62, "mmHg"),
    "dbp_mmhg": (72.4, 15.0, 30, 130, 0, 64, "mmHg"),
    "pain": (4.1, 3.7, 0, 10, 0, 83, "0-10"),
    "acuity": (2.2, 0.6, 1, 5, 0, 24, "1-5"),
}
TRIAGE = (*TRIAGE_LAWS, "gender")

# Pearson correlation of a vital with a lesion.
CORRELATIONS = {
    ("age_years", "enlarged_cardiac_silhouette"): 0.21,
    ("age_years", "pulmonary_edema"): 0.19,
    ("resprate_per_min", "consolidation"): 0.21,
    ("resprate_per_min", "enlarged_cardiac_silhouette"): 0.16,
    ("o2sat_percent", "consolidation"): -0.12,
    ("pain", "pulmonary_edema"): 0.11,
    ("dbp_mmhg", "pleural_abnormality"): -0.13,
}
FEMALE = 0.48


def chest_xray(n: int = 670, *, size: int = 512, seed: int = 0) -> Synthetic:
    r"""Frontal chest X-rays with boxes and masks of five kinds of lesions, and what triage measured.

    At n = 670 the numbers of cases, of positives of each lesion in each split, of views, patients and missing vitals
    are the published ones; vitals have the published means. Lesions are independent of each other. A vital is normal
    given the lesions with a mean that gives it the published correlation with them,

    .. math:: z_v = \sum_l r_{vl} \frac{y_l - p_l}{\sqrt{p_l (1 - p_l)}} + \sqrt{1 - \textstyle\sum_l r_{vl}^2}\; e

    and then scaled, rounded and cut to its range, which costs part of the correlation (of o2sat most). The evidence of
    `clinical` is that of :math:`z`, summed over the 16 combinations of the other lesions, and so an upper bound. Images
    have no closed form: a lesion is drawn wherever the label says so, with a contrast between hardly visible and plain
    (`hidden["contrast"]`, 0 where absent).

    Measured on 100,000 cases (standard error 0.002): AUC of the vitals 0.676, 0.5, 0.587, 0.680 and 0.679 in the order
    of `LESIONS`.

    Not realistic: anatomy of ellipses without shoulder blades or devices; one reading an image; lesions do not depend
    on each other; splits hold whole patients, which the published ones do not; vitals are almost normal.

    Args:
      n: number of images, at least 40.
      size: height and width of the images in pixels.
      seed: of all draws.

    Returns:
      Cohort with the sources `image`, values in [0, 1], shape `(size, size, 1)`, `lesion_masks`, shape
      `(size, size, 5)`, and `clinical`, the columns `TRIAGE`; one label column for each of `LESIONS`; `view` and
      `split` as groups; boxes with `LESIONS` as classes. Missing vitals are missing.

    Raises:
      ValueError: fewer than 40 images or 64 pixels.

    Example:
      >>> cohort, truth = chest_xray(100, size=64, seed=1)
      >>> len(cohort), cohort.sources["lesion_masks"][0].shape, len(cohort.columns("label"))
      (100, (64, 64, 5), 5)

    References:
      Counts, means and correlations: Hsieh et al., section on data and the authors' notebooks; the lesions are ours.
    """
    n = checked_n(n, 40, "chest_xray")
    cases, split = cases_of_splits(n, size)
    label = np.zeros((n, len(LESIONS)), np.int64)
    for k, lesion in enumerate(LESIONS):
        for part in range(3):
            positive = round(POSITIVE[part, k] * cases[part] / CASES[part])
            counts = np.array([cases[part] - positive, positive])
            label[split == part, k] = shuffled_levels(counts, column_stream(seed, f"{SPLITS[part]} {lesion}"))
    scores, evidence = _vitals(label, seed)
    drawn = DrawnCases(n, cases, label, triage_table(scores, n, seed), seed, size)
    cohort, order, contrast = drawn.cohort(Radiographs, "chest_xray", "synthetic chest X-ray")
    hidden = {"contrast": contrast, "scores": scores[order]}
    return Synthetic(cohort, Truth(LESIONS, label[order], {"clinical": evidence[order]}, None, hidden))


def cases_of_splits(n: int, size: int) -> tuple[Int[np.ndarray, "3"], Int[np.ndarray, "n"]]:
    """Numbers of cases of `SPLITS`, and the split of every case; the size of the images is checked first."""
    if size < 64:
        raise ValueError(f"size {size} pixels; expected at least 64, so that lesions can be seen.")
    split = np.repeat(np.arange(3), proportional(CASES, n))
    return np.bincount(split, minlength=3), split


def _patients(cases: Int[np.ndarray, "3"], n: int, seed: int) -> Int[np.ndarray, "n"]:
    """Patient of every case; 540 of 670, none in two splits."""
    per_split = proportional(cases, max(round(n * PATIENTS / sum(CASES)), 3))
    parts, first = [], 0
    for part, patients in enumerate(per_split):
        sizes = spread_over(int(cases[part]), int(patients), column_stream(seed, f"patients {part}"), 4)
        parts.append(first + np.repeat(np.arange(patients), sizes))
        first += patients
    return np.concatenate(parts)


def _vitals(label: Int[np.ndarray, "n k"], seed: int) -> tuple[Float[np.ndarray, "n v"], Float[np.ndarray, "n k"]]:
    """Scores of the vitals given the lesions, and what they tell of each lesion."""
    from scipy.special import logsumexp

    names, prevalence = list(TRIAGE_LAWS), label.mean(axis=0)
    r = np.zeros((len(names), len(LESIONS)))
    for (vital, lesion), value in CORRELATIONS.items():
        r[names.index(vital), LESIONS.index(lesion)] = value
    noise_sd = np.sqrt(1 - np.square(r).sum(axis=1))
    noise = np.stack([normal_scores(len(label), column_stream(seed, name)) for name in names], axis=1)

    def means(lesions: np.ndarray) -> np.ndarray:
        return (lesions - prevalence) / np.sqrt(prevalence * (1 - prevalence)) @ r.T

    scores = means(label) + noise_sd * noise
    log_density, combinations = [], np.array(list(itertools.product((0, 1), repeat=len(LESIONS))))
    for lesions in combinations:
        prior = np.log(np.where(lesions == 1, prevalence, 1 - prevalence)).sum()
        log_density.append(prior - 0.5 * np.square((scores - means(lesions)) / noise_sd).sum(axis=1))
    joint = np.stack(log_density)
    evidence = np.empty((len(label), len(LESIONS)))
    for k in range(len(LESIONS)):
        with_lesion = combinations[:, k] == 1
        prior_odds = np.log(prevalence[k] / (1 - prevalence[k]))
        evidence[:, k] = logsumexp(joint[with_lesion], axis=0) - logsumexp(joint[~with_lesion], axis=0) - prior_odds
    return scores, evidence


def triage_table(scores: Float[np.ndarray, "n v"], n: int, seed: int) -> "pandas.DataFrame":
    """Vitals with the published means, ranges and gaps from scores of variance 1, and genders."""
    import pandas as pd

    columns = {}
    for v, (name, (mean, sd, low, high, digits, missing, _)) in enumerate(TRIAGE_LAWS.items()):
        rows = column_stream(seed, f"missing {name}").permutation(n)
        absent, there = np.split(rows, [round(missing * n / sum(CASES))])
        # Cutting to the range and losing cases move the mean; a few steps bring it back.
        centre = mean
        for _ in range(20):
            centre += mean - np.clip(centre + sd * scores[there, v], low, high).mean()
        values = np.round(np.clip(centre + sd * scores[:, v], low, high), digits)
        values[absent] = np.nan
        columns[name] = values
    female = shuffled_levels(proportional([1 - FEMALE, FEMALE], n), column_stream(seed, "gender"))
    columns["gender"] = np.array(["M", "F"], dtype=object)[female]
    return pd.DataFrame(columns)


@dataclasses.dataclass(frozen=True, eq=False)
class Lesion:
    """One lesion: an ellipse in units of the image's side, and how it is drawn."""

    kind: int
    y: float
    x: float
    ry: float
    rx: float
    contrast: float


def lesion_boxes(plan: list[Lesion], size: int) -> Boxes:
    """Bounding boxes of the lesions' outlines, in pixels."""
    corners = [(it.x - it.rx, it.y - it.ry, it.x + it.rx, it.y + it.ry) for it in plan]
    corners = np.clip(np.array(corners, np.float64).reshape(-1, 4) * size, 0, size)
    return Boxes(corners, np.array([it.kind for it in plan], np.int32))


@dataclasses.dataclass(frozen=True, eq=False)
class Radiographs:
    """Chest X-rays."""

    label: Bool[np.ndarray, "n k"]
    frontal: Bool[np.ndarray, "n"]
    """Taken from the front (AP), where the heart looks larger."""
    size: int
    seed: int

    def plan(self, row: int) -> list[Lesion]:
        """Lesions of a case, with the heart's own ellipse where it is enlarged."""
        rng = case_stream(self.seed, row, "lesions")
        sides = rng.permutation([-1, 1])
        where = rng.random((len(LESIONS), 4))
        contrast = rng.uniform(0.25, 1.0, len(LESIONS))
        two = rng.random(len(LESIONS)) < 0.3
        plan = []
        for kind in np.flatnonzero(self.label[row]):
            a, b, c, d = where[kind]
            strength = float(contrast[kind])
            if LESIONS[kind] == "enlarged_cardiac_silhouette":
                y, x, ry, rx = self.heart(row)
                plan.append(Lesion(0, y, x, ry, rx, strength))
                continue
            both = sides if LESIONS[kind] == "pulmonary_edema" or two[kind] else sides[:1]
            for side in both:
                y, x, ry, rx = {
                    "atelectasis": (0.60 + 0.1 * a, 0.16 + 0.05 * b, 0.022 + 0.02 * c, 0.075 + 0.03 * d),
                    "pleural_abnormality": (0.72 - 0.09 * a, 0.235 + 0.02 * b, 0.07 + 0.09 * a, 0.085 + 0.02 * d),
                    "consolidation": (0.34 + 0.3 * a, 0.17 + 0.07 * b, 0.055 + 0.05 * c, 0.05 + 0.04 * d),
                    "pulmonary_edema": (0.46 + 0.06 * a, 0.15 + 0.02 * b, 0.13 + 0.05 * c, 0.075 + 0.03 * d),
                }[LESIONS[kind]]
                plan.append(Lesion(int(kind), y, 0.5 + side * x, ry, rx, strength))
        return plan

    def heart(self, row: int) -> tuple[float, float, float, float]:
        """Centre and radii of the heart; a cardiothoracic ratio above one half where it is enlarged."""
        rng = case_stream(self.seed, row, "heart")
        large = bool(self.label[row, 0])
        half = rng.uniform(0.2, 0.255) if large else rng.uniform(0.125, 0.17)
        half *= 1.08 if self.frontal[row] else 1.0
        height = 0.16 + 0.25 * (half - 0.12)
        return 0.655 - 0.3 * (height - 0.16), 0.5 + 0.3 * half, height, half

    def __call__(self, row: int) -> Image:
        size = self.size
        rng = case_stream(self.seed, row)
        unit = (np.arange(size) + 0.5) / size
        y, x = unit[:, None], unit[None, :]

        def ellipse(cy: float, cx: float, ry: float, rx: float, soft: float = 0.012) -> np.ndarray:
            return edge((np.sqrt(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2) - 1) * min(ry, rx), soft)

        coarse = smooth_noise((size, size), size / 9, rng)
        fine = smooth_noise((size, size), max(size / 70, 1.0), rng)
        wide = rng.uniform(0.95, 1.06)
        trunk = edge((((x - 0.5) / (0.475 * wide)) ** 4 + np.clip((0.3 - y) / 0.33, 0, 2) ** 4 - 1) * 0.1, 0.02)
        neck = edge(np.abs(x - 0.5) - 0.115, 0.03) * edge(y - 0.3, 0.05)
        image = 0.03 + 0.56 * np.maximum(trunk, neck) * (1 + 0.04 * coarse)

        lungs = np.zeros((size, size))
        for side in (-1, 1):
            # Broad at the base, pointed at the apex; the dome of the diaphragm cuts it below.
            cx = 0.5 + side * 0.2 * wide
            base = (0.77 if side < 0 else 0.8) + 1.3 * (x - cx + side * 0.02) ** 2
            taper = 0.145 * wide * np.sqrt(np.clip((y - 0.1) / 0.4, 1e-3, 1)) + 0 * x
            middle = cx - side * 0.05 * np.clip(1 - (y - 0.1) / 0.35, 0, 1)
            lung = edge(np.abs(x - middle) - taper, 0.02) * edge(0.1 - y, 0.02) * edge(y - base, 0.012)
            lungs = np.maximum(lungs, lung)
        image = blend(image, 0.16 + 0.012 * fine + 0.015 * coarse, 0.95 * lungs)
        image += lungs * self._vessels(rng, y, x)
        image = image + 0.1 * edge(np.abs(x - 0.5) - 0.045, 0.03) * (0.8 + 0.2 * np.sin(2 * np.pi * y / 0.045))
        cy, cx, ry, rx = self.heart(row)
        image = blend(image, 0.74, 0.9 * ellipse(cy, cx, ry, rx, 0.02))
        image = blend(image, 0.7, 0.85 * ellipse(0.36, 0.515, 0.22, 0.062, 0.03))
        image = blend(image, 0.72, 0.8 * ellipse(0.31, 0.555, 0.045, 0.04, 0.02))
        image = blend(image, 0.3, 0.6 * edge(np.abs(x - 0.497) - 0.014, 0.012) * edge(y - 0.37, 0.03))
        image += self._ribs(rng, y, x)
        for lesion in self.plan(row):
            image = self.draw_lesion(image, lesion, y, x, lungs, coarse, fine)
        image += rng.normal(0, 0.012, (size, size))
        return Image(np.clip(image, 0, 1)[..., None].astype(np.float32))

    def _vessels(self, rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        vessels = np.zeros(np.broadcast_shapes(y.shape, x.shape))
        middle = x.shape[1] // 2
        for side, columns in ((-1, slice(None, middle)), (1, slice(middle, None))):
            dy, dx = y - 0.46, side * (x[:, columns] - 0.5) - 0.095
            lung = vessels[:, columns]
            for angle in np.linspace(-1.3, 1.4, 9) + rng.normal(0, 0.08, 9):
                along = dx * np.cos(angle) + dy * np.sin(angle)
                left = np.clip(1 - along / 0.3, 0, 1) * (along > 0)
                bend = dy * np.cos(angle) - dx * np.sin(angle) - rng.normal(0, 0.6) * along**2
                lung += 0.13 * left * np.square(np.clip(1 - np.square(bend / (0.014 * left + 2e-3)), 0, None))
            lung += 0.12 * np.exp(-np.square((y - 0.47) / 0.055)) * np.exp(-np.square(dx / 0.03))
        return np.clip(vessels, 0, 0.2)

    def _ribs(self, rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        out = np.abs(x - 0.5)
        ribs = np.zeros(np.broadcast_shapes(y.shape, x.shape))
        tilt = rng.uniform(0.85, 1.15)
        for k in range(9):
            # Behind: from the spine up and out, then down along the chest wall.
            line = 0.13 + 0.075 * k - 0.1 * tilt * np.sqrt(np.clip(out, 0, None)) + 1.6 * out**2.4 * (1 + 0.1 * k)
            ribs += 0.055 * edge(np.abs(y - line) - 0.011, 0.008) * edge(out - 0.4, 0.04)
        for k in range(5):
            line = 0.3 + 0.09 * k + 0.32 * (0.36 - out) * tilt
            ribs += 0.03 * edge(np.abs(y - line) - 0.012, 0.01) * edge(out - 0.36, 0.03) * edge(0.2 - out, 0.04)
        clavicle = 0.16 - 0.2 * (out - 0.05) + 0.35 * (out - 0.05) ** 2
        return ribs + 0.09 * edge(np.abs(y - clavicle) - 0.012, 0.008) * edge(0.04 - out, 0.01) * edge(out - 0.36, 0.02)

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
        """The image with one lesion; `y` and `x` are the places of rows and columns, the other arrays textures."""
        kind, strength = LESIONS[lesion.kind], lesion.contrast
        v, u = (y - lesion.y) / lesion.ry, (x - lesion.x) / lesion.rx
        radius = np.sqrt(u**2 + v**2)
        inside = edge((radius - 1) * min(lesion.ry, lesion.rx), 0.015)
        if kind == "atelectasis":
            band = np.exp(-np.square((v - 0.35 * u) / 0.5)) * inside
            return blend(image, 0.68, (0.35 + 0.5 * strength) * band)
        if kind == "pleural_abnormality":
            # A meniscus: fluid stands higher along the chest wall.
            side = np.sign(lesion.x - 0.5)
            level = lesion.ry * (0.5 - 1.3 * np.clip(side * u, -1, 1) ** 3) * 0.8
            fluid = edge(lesion.y + level - y, 0.02) * edge(np.abs(u) - 1, 0.1) * edge(np.abs(v) - 1, 0.1)
            return blend(image, 0.72, (0.4 + 0.55 * strength) * fluid * np.clip(lungs * 1.2, 0, 1))
        if kind == "consolidation":
            patch = edge((radius - 0.85 - 0.22 * fine) * min(lesion.ry, lesion.rx), 0.04) * inside
            return blend(image, 0.62 + 0.05 * fine, (0.3 + 0.6 * strength) * patch * lungs)
        if kind == "pulmonary_edema":
            haze = np.exp(-np.square(radius) * 1.3) * inside * (1 + 0.35 * fine + 0.2 * coarse)
            return blend(image, 0.58, np.clip((0.35 + 0.6 * strength) * haze, 0, 1) * lungs)
        return image  # the heart is drawn with the anatomy


@dataclasses.dataclass(frozen=True, eq=False)
class LesionMasks:
    """Pixels within the outline of each kind of lesion."""

    radiographs: Radiographs

    def __call__(self, row: int) -> Image:
        size = self.radiographs.size
        unit = (np.arange(size) + 0.5) / size
        masks = np.zeros((size, size, len(LESIONS)), np.uint8)
        for lesion in self.radiographs.plan(row):
            y, x = (unit[:, None] - lesion.y) / lesion.ry, (unit[None, :] - lesion.x) / lesion.rx
            masks[..., lesion.kind] |= (y**2 + x**2 <= 1).astype(np.uint8)
        return Image(masks, None, None, "label")


@dataclasses.dataclass(frozen=True, eq=False)
class DrawnCases:
    """What is drawn of cases that still lie split by split."""

    n: int
    cases: Int[np.ndarray, "3"]
    """Of each of `SPLITS`."""
    label: Int[np.ndarray, "n k"]
    vitals: "pandas.DataFrame"
    seed: int
    size: int

    def cohort(
        self, images: type[Radiographs], law: str, name: str
    ) -> tuple[Cohort, Int[np.ndarray, "n"], Float[np.ndarray, "n k"]]:
        """The cases in an order that tells nothing.

        Args:
          images: draws the cases.
          law: which identity the images are known by.
          name: of the cohort.

        Returns:
          The cohort, the place of each of its cases in what was drawn, and the contrast of its lesions.
        """
        import pandas as pd

        n, size, seed = self.n, self.size, self.seed
        table = self.vitals.assign(**{lesion: self.label[:, number] for number, lesion in enumerate(LESIONS)})
        table["view"] = np.array(list(VIEWS), dtype=object)[
            shuffled_levels(proportional(list(VIEWS.values()), n), column_stream(seed, "view"))
        ]
        table["split"] = np.repeat(np.array(SPLITS, dtype=object), self.cases)
        order = column_stream(seed, "order").permutation(n)
        table, patients = table.iloc[order], _patients(self.cases, n, seed)[order]
        table.index = pd.Index([f"cxr_{row:05d}" for row in range(n)], dtype=object)
        radiographs = images(self.label[order] == 1, (table["view"] == "AP").to_numpy(), size, seed)
        plans = [radiographs.plan(row) for row in range(n)]
        contrast = np.zeros((n, len(LESIONS)))
        for row, plan in enumerate(plans):
            for lesion in plan:
                contrast[row, lesion.kind] = lesion.contrast
        identity = json.dumps([law, seed, n, size])
        roles: dict[str, Role] = {"view": "group", "split": "group"}
        roles |= {**dict.fromkeys(TRIAGE, "input"), **dict.fromkeys(LESIONS, "label")}
        cohort = Cohort.from_arrays(
            {
                "image": Lazy(radiographs, np.arange(n), "image", identity),
                "lesion_masks": Lazy(LesionMasks(radiographs), np.arange(n), "mask", f"{identity} masks"),
                "clinical": Columns(TRIAGE, n),
            },
            table=table,
            patient_id=[f"patient_{patient:05d}" for patient in patients],
            roles=roles,
            units={vital: of_vital[-1] for vital, of_vital in TRIAGE_LAWS.items()},
            boxes=[lesion_boxes(plan, size) for plan in plans],
            box_classes=LESIONS,
            name=name,
        )
        return cohort, order, contrast
