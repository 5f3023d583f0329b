"""Synthetic liver cancer: three-phase CT slices with displaced lesion boxes, and 17 clinical factors."""

import dataclasses
import json

import numpy as np
from jaxtyping import Float, Int

from fusion_jax.data.cohort import Boxes, Cohort, Columns, Lazy
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

__all__ = ["FACTOR_COUNTS", "HCC_FACTORS", "PHASES", "liver_cancer_ct"]

PHASES = ("nc", "art", "pv")
"""Sources: CT without contrast, in the arterial and in the portal venous phase."""

RECURRENCES = {0: 102, 1: 65}
SLICES = (70, 84, 82, 74, 71, 89, 65, 71, 85, 74)
"""Slices of the ten folds."""

FOLD_PATIENTS = ((10, 7),) * 5 + ((11, 6),) * 2 + ((10, 6),) * 3
"""Patients without and with an early recurrence in each fold; the only composition with the printed sizes."""

FACTOR_COUNTS = {
    "sex": ((17, 10), (85, 55)),
    "age_years": ((55, 47), (47, 18)),
    "tumour_size_cm": ((74, 28), (28, 37)),
    "tumour_number": ((97, 58), (5, 7)),
    "portal_vein_invasion": ((95, 48), (7, 17)),
    "cirrhosis": ((31, 21), (71, 44)),
    "hepatitis_b": ((25, 8), (77, 57)),
    "neutrophil_lymphocyte_ratio": ((71, 35), (31, 30)),
    "alt_u_l": ((66, 38), (36, 27)),
    "ast_u_l": ((77, 46), (25, 19)),
    "alkaline_phosphatase_u_l": ((85, 46), (17, 19)),
    "ggt_u_l": ((46, 20), (56, 45)),
    "albumin_g_l": ((100, 65), (2, 0)),
    "total_bilirubin_umol_l": ((81, 41), (21, 24)),
    "afp_ug_l": ((39, 11), (63, 54)),
    "child_pugh": ((89, 51), (13, 14)),
    "bclc": ((17, 5), (78, 39), (1, 3), (6, 18)),
}
"""Patients without and with an early recurrence at each level of a factor; the first level is the reference."""

HCC_FACTORS = tuple(FACTOR_COUNTS)

WORDS = {
    "sex": ("female", "male"),
    "portal_vein_invasion": ("no", "yes"),
    "cirrhosis": ("no", "yes"),
    "hepatitis_b": ("no", "yes"),
    "child_pugh": ("A", "B"),
    "bclc": ("0", "A", "B", "C"),
}
# Cut-off, lowest and highest value, digits; values at the cut-off and above are the second level. The printed cut-offs
# are those of age, size, N/L ratio, bilirubin and AFP; the others are common upper limits of normal.
RANGES = {
    "age_years": (60.0, 24.0, 84.0, 0),
    "tumour_size_cm": (5.0, 1.0, 15.0, 1),
    "tumour_number": (2.0, 1.0, 4.0, 0),
    "neutrophil_lymphocyte_ratio": (2.8, 0.8, 11.0, 2),
    "alt_u_l": (50.0, 9.0, 310.0, 0),
    "ast_u_l": (40.0, 12.0, 260.0, 0),
    "alkaline_phosphatase_u_l": (125.0, 40.0, 420.0, 0),
    "ggt_u_l": (60.0, 10.0, 600.0, 0),
    "total_bilirubin_umol_l": (20.5, 4.0, 62.0, 1),
    "afp_ug_l": (9.0, 1.0, 60_000.0, 1),
    # The other way round: below 35 is the second level.
    "albumin_g_l": (35.0, 25.0, 52.0, 1),
}
UNITS = {
    "age_years": "years",
    "tumour_size_cm": "cm",
    "alt_u_l": "U/L",
    "ast_u_l": "U/L",
    "alkaline_phosphatase_u_l": "U/L",
    "ggt_u_l": "U/L",
    "total_bilirubin_umol_l": "umol/L",
    "afp_ug_l": "ug/L",
    "albumin_g_l": "g/L",
}
IMAGE_D_PRIME = 0.7
"""What the enhancement of the lesion tells beyond its size."""

FIELD_MM = 380.0
LIVER_HU = {"nc": 58.0, "art": 72.0, "pv": 112.0}
AORTA_HU = {"nc": 42.0, "art": 310.0, "pv": 150.0}
SPLEEN_HU = {"nc": 48.0, "art": 120.0, "pv": 122.0}
VEIN_HU = {"nc": 42.0, "art": 95.0, "pv": 172.0}


def liver_cancer_ct(n: int = 167, *, size: int = 256, seed: int = 0) -> Synthetic:
    r"""Slices of CT in three phases through liver cancers, with boxes, and clinical factors before resection.

    A case is a slice; `n` counts patients. At n = 167 there are 765 slices, 65 patients with an early recurrence, all
    17 factors have the printed counts in either class, and the groups in column `fold` have the printed composition and
    slices. The factors are independent given the class. Each phase is its own breath hold: anatomy and lesion are
    shifted by whole pixels against the first phase, known from `hidden["shift"]`, shape `(slices, 3, 2)`, `(dy, dx)`;
    the boxes have the phase as class and are the outline's extent.

    A hidden number of d' 0.7 makes the lesion take up contrast early, wash it out, and be uneven. The image shows the
    size of the tumour too, which the table also has: that part is redundant, and the evidence of both counts it once.

    Measured on 20,000 patients (standard error 0.003): AUC 0.746 of an enhanced phase, 0.857 of all factors, 0.879 of
    everything. These are bounds for a patient with all slices; one slice shows less of the tumour's size. Slices of a
    patient are no cases of their own: the standard error of `Truth.auc` takes them for such and is too small.

    Not realistic: factors are independent (a portal vein may be invaded outside BCLC C, a stage may contradict size and
    number); the number of slices depends on nothing, so that slices and patients have one likelihood ratio; one lesion
    a slice; anatomy stays the same from slice to slice of a patient; values are log-uniform on their side of the
    cut-off.

    Args:
      n: number of patients, at least 30.
      size: height and width of the slices in pixels over 380 mm; 512 in the clinic.
      seed: of all draws.

    Returns:
      Cohort with the sources `nc`, `art` and `pv` in HU, shape `(size, size, 1)`, and `clinical`, the columns
      `HCC_FACTORS`; label `early_recurrence`; `fold` as a group; boxes of the three phases.

    Raises:
      ValueError: fewer than 30 patients or 64 pixels.

    Example:
      >>> cohort, truth = liver_cancer_ct(seed=1)
      >>> len(cohort), len(set(cohort.patient_id)), cohort.box_classes, cohort.boxes[0].corners.shape
      (765, 167, ('nc', 'art', 'pv'), (3, 4))

    References:
      Marginals: Wang et al. 2020, Tables 1 and 2; the signal is ours.
    """
    import pandas as pd

    n = checked_n(n, 30, "liver_cancer_ct")
    if size < 64:
        raise ValueError(f"size {size} pixels over 380 mm; expected at least 64, so that a lesion can be seen.")
    without, recurring = proportional(list(RECURRENCES.values()), n)
    label = shuffled_levels(np.array([without, recurring]), column_stream(seed, "label"))
    levels, table, ratio = _factors(label, seed)
    folds = _folds(label, column_stream(seed, "fold"))
    slices = _slices(folds, n, column_stream(seed, "slices"))
    signal = np.empty(n)
    for value in (0, 1):
        rows = label == value
        signal[rows] = IMAGE_D_PRIME * (value - 0.5) + normal_scores(int(rows.sum()), column_stream(seed, f"s{value}"))

    patient = np.repeat(np.arange(n), slices)
    number = np.arange(len(patient)) - np.repeat(np.cumsum(slices) - slices, slices)
    scenes = _Scenes(signal, np.asarray(table["tumour_size_cm"]), patient, number, slices, size, seed)
    places = [scenes.place(i) for i in range(n)]
    boxes = [
        Boxes(_box_corners(*places[i], scenes.radius(row), size), np.arange(3, dtype=np.int32))
        for row, i in enumerate(patient)
    ]
    frame = pd.DataFrame(table).iloc[patient].reset_index(drop=True)
    frame["fold"] = [f"E{fold + 1}" for fold in folds[patient]]
    frame["early_recurrence"] = label[patient]
    names = [f"hcc_{i:04d}" for i in range(n)]
    frame.index = pd.Index([f"{names[i]}_s{k:02d}" for i, k in zip(patient, number, strict=True)], dtype=object)
    identity = json.dumps(["liver_cancer_ct", seed, n, size])
    rows = np.arange(len(patient))
    cohort = Cohort.from_arrays(
        {
            **{phase: Lazy(_Phase(scenes, phase), rows, "image", f"{identity} {phase}") for phase in PHASES},
            "clinical": Columns(HCC_FACTORS, len(rows)),
        },
        table=frame,
        patient_id=[names[i] for i in patient],
        roles={**dict.fromkeys(HCC_FACTORS, "input"), "fold": "group", "early_recurrence": "label"},
        units=UNITS | dict.fromkeys(PHASES, "HU"),
        boxes=boxes,
        box_classes=PHASES,
        name="synthetic liver cancer CT",
    )
    image = IMAGE_D_PRIME * signal + ratio["tumour_size_cm"]
    clinical = np.sum(list(ratio.values()), axis=0)
    together = clinical + IMAGE_D_PRIME * signal
    evidence = {"clinical": clinical[patient][:, None], "nc": ratio["tumour_size_cm"][patient][:, None]}
    evidence |= dict.fromkeys(PHASES[1:], image[patient][:, None])
    hidden = {
        "image_signal": signal[patient],
        "shift": np.stack([shift for _, shift in places])[patient],
        "levels": np.stack([levels[name] for name in HCC_FACTORS], axis=1)[patient],
    }
    return Synthetic(
        cohort, Truth(("early_recurrence",), label[patient][:, None], evidence, together[patient][:, None], hidden)
    )


def _factors(label: Int[np.ndarray, "n"], seed: int) -> tuple[dict, dict, dict]:
    """Levels, cells and log-likelihood ratio of every factor."""
    levels, cells, ratio = {}, {}, {}
    for name, printed in FACTOR_COUNTS.items():
        rng = column_stream(seed, name)
        counts = np.array(printed)
        level = np.empty(len(label), np.int64)
        for value in (0, 1):
            rows = label == value
            level[rows] = shuffled_levels(proportional(counts[:, value], int(rows.sum())), rng)
        share = (counts + 0.5) / (counts + 0.5).sum(axis=0)
        levels[name], ratio[name] = level, np.log(share[:, 1] / share[:, 0])[level]
        cells[name] = _cells(name, level, rng)
    return levels, cells, ratio


def _cells(name: str, level: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if name in WORDS:
        return np.array(WORDS[name], dtype=object)[level]
    cut, low, high, digits = RANGES[name]
    above = level == (0 if name == "albumin_g_l" else 1)
    step = 10.0**-digits
    # The same law for either class on each side of the cut-off: values tell no more than the level.
    bounds = np.where(above, cut, low), np.where(above, high, cut - step)
    values = np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1])))
    return np.clip(np.round(values, digits), *bounds)


def _folds(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    folds = np.empty(len(label), np.int64)
    for value in (0, 1):
        rows = rng.permutation(np.flatnonzero(label == value))
        counts = proportional([fold[value] for fold in FOLD_PATIENTS], len(rows))
        folds[rows] = np.repeat(np.arange(len(FOLD_PATIENTS)), counts)
    return folds


def _slices(folds: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Slices of every patient, whatever else is known of them."""
    slices = np.ones(n, np.int64)
    totals = np.array(SLICES) if n == sum(RECURRENCES.values()) else None
    for fold in range(len(FOLD_PATIENTS)):
        rows = np.flatnonzero(folds == fold)
        total = round(len(rows) * sum(SLICES) / 167) if totals is None else int(totals[fold])
        if len(rows):
            slices[rows] = spread_over(max(total, len(rows)), len(rows), rng, 12)
    return slices


@dataclasses.dataclass(frozen=True, eq=False)
class _Scenes:
    """Anatomy and lesion of every slice."""

    signal: Float[np.ndarray, "p"]
    size_cm: Float[np.ndarray, "p"]
    patient: Int[np.ndarray, "n"]
    number: Int[np.ndarray, "n"]
    slices: Int[np.ndarray, "p"]
    size: int
    seed: int

    def place(self, patient: int) -> tuple[np.ndarray, np.ndarray]:
        """Centre `(y, x)` in mm in the first phase, and the shift of every phase in pixels."""
        rng = case_stream(self.seed, patient, "lesion")
        # Larger lesions sit deeper, or they would leave the liver; the centre tells no more than the size.
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.7) * max(1 - self.size_cm[patient] / 15, 0.0)
        centre = np.array([-12 + 58 * reach * np.sin(angle), -62 + 62 * reach * np.cos(angle)])
        shift = np.zeros((3, 2), np.int64)
        shift[1:] = np.round(rng.normal(0, 7, (2, 2)) * self.size / FIELD_MM)
        return centre, shift

    def radius(self, row: int) -> float:
        """Radius in mm of the lesion in a slice: a ball, cut at even distances."""
        patient = int(self.patient[row])
        total = int(self.slices[patient])
        height = 0.9 * ((self.number[row] + 0.5) / total * 2 - 1) if total > 1 else 0.0
        return float(5 * self.size_cm[patient] * np.sqrt(1 - height**2))


def _box_corners(centre: np.ndarray, shift: np.ndarray, radius: float, size: int) -> np.ndarray:
    pixel = FIELD_MM / size
    middle = (centre + FIELD_MM / 2) / pixel + shift
    low, high = middle - radius / pixel, middle + radius / pixel
    return np.clip(np.stack([low[:, 1], low[:, 0], high[:, 1], high[:, 0]], axis=1), 0, size)


@dataclasses.dataclass(frozen=True, eq=False)
class _Phase:
    """Slices of one phase."""

    scenes: _Scenes
    phase: str

    def __call__(self, row: int) -> Image:
        scenes, phase = self.scenes, self.phase
        size, pixel = scenes.size, FIELD_MM / scenes.size
        patient = int(scenes.patient[row])
        centre, shifts = scenes.place(patient)
        shift = shifts[PHASES.index(phase)]
        axis = (np.arange(size) + 0.5) * pixel - FIELD_MM / 2
        y, x = axis[:, None] - shift[0] * pixel, axis[None, :] - shift[1] * pixel
        rng = case_stream(scenes.seed, patient, "anatomy")
        width, depth = rng.uniform(148, 172), rng.uniform(100, 122)
        fat, texture = rng.uniform(8, 26), smooth_noise((size, size), 18 / pixel, rng)
        texture = np.roll(texture, shift, axis=(0, 1))

        def ellipse(cy: float, cx: float, ry: float, rx: float, soft: float = 3.0) -> np.ndarray:
            return edge((np.sqrt(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2) - 1) * min(ry, rx), soft)

        image = np.full((size, size), -1000.0)
        body = ellipse(0, 0, depth, width)
        image = blend(image, -105.0, body)
        image = blend(image, 52.0, ellipse(0, 0, depth - fat, width - fat))
        image = blend(image, -95.0, ellipse(0, 0, depth - fat - 11, width - fat - 11))
        image = blend(image, 45.0, ellipse(depth - fat - 32, 0, 24, 62))
        for side in (-1, 1):
            for k in range(5):
                rib = (depth - fat - 6) * np.sin(0.5 * k - 0.95), side * (width - fat - 6) * np.cos(0.5 * k - 0.95)
                image = blend(image, 240.0, ellipse(*rib, 4.5, 8, 2.0))
        image = blend(image, 210.0, ellipse(depth - fat - 48, 0, 17, 21))
        image = blend(image, 10.0, ellipse(depth - fat - 27, 0, 7, 9))
        image = blend(image, AORTA_HU[phase], ellipse(depth - fat - 76, 8, 11, 11))
        image = blend(image, SPLEEN_HU[phase], ellipse(42, width - fat - 40, 38, 24))
        stomach = ellipse(-30, 62, 30, 44)
        image = blend(image, 22.0, stomach)
        image = blend(image, -850.0, stomach * edge(y + 36, 2.0))
        right = np.hypot((y + 5) / (depth - fat - 26), (x + 68) / (width - fat - 76)) - 1
        left = np.hypot((y + 38) / 33, (x - 4) / 66) - 1
        liver = edge(np.minimum(right * 60, left * 33) + 2 * texture, 3.0)
        image = blend(image, LIVER_HU[phase] + 3 * texture, liver)
        for _ in range(6):
            start = rng.uniform(-30, 20), rng.uniform(-100, -30)
            image = blend(image, VEIN_HU[phase], liver * ellipse(*start, rng.uniform(2, 4), rng.uniform(5, 17), 3.0))
        image = blend(image, VEIN_HU[phase], ellipse(22, -18, 12, 14))
        image = self._lesion(image, np.hypot(y - centre[0], x - centre[1]), scenes.radius(row), patient, shift)
        noise = case_stream(scenes.seed, row, f"noise {phase}")
        grain = smooth_noise((size, size), max(1.4 / pixel, 1.0), noise)
        values = np.clip(np.round(image + 9 * grain), -1024, 3071)
        return Image(values[..., None].astype(np.float32), (pixel, pixel), None, "HU")

    def _lesion(
        self, image: np.ndarray, distance: np.ndarray, radius: float, patient: int, shift: np.ndarray
    ) -> np.ndarray:
        strength = 1 / (1 + np.exp(-1.2 * self.scenes.signal[patient]))
        rng = case_stream(self.scenes.seed, patient, "inside")
        pixel = FIELD_MM / self.scenes.size
        uneven = np.roll(smooth_noise(image.shape, 9 / pixel, rng), shift, axis=(0, 1))
        level = {"nc": 46.0, "art": 80 + 65 * strength, "pv": 106 - 34 * strength}[self.phase]
        spread = 0.0 if self.phase == "nc" else 4 + 26 * strength
        image = blend(image, level + spread * uneven, edge(distance - radius, 2.5))
        if self.phase == "pv":
            image = blend(image, 138.0, 0.7 * np.exp(-(((distance - radius) / 2.0) ** 2)))
        return image
