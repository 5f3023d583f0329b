"""Synthetic PET-CT of soft-tissue sarcoma in the thigh: two grids, one tumour, signal in uptake, texture and volume."""

import dataclasses
import json

import numpy as np
from jaxtyping import Float

from fusion_jax.data.cohort import Cohort, Lazy
from fusion_jax.data.image import Image
from fusion_jax.data.synthetic.draws import (
    case_stream,
    checked_n,
    column_stream,
    normal_scores,
    proportional,
    shuffled_levels,
)
from fusion_jax.data.synthetic.fields import blend, directional_wave, edge, smooth_noise
from fusion_jax.data.synthetic.liver import canonical_affine
from fusion_jax.data.synthetic.truth import Synthetic, Truth

__all__ = ["sarcoma_pet_ct"]

SIGNALS = ("uptake", "texture", "volume")
SHOWN = {"pet": ("uptake", "volume"), "ct": ("texture", "volume"), "mask": ("volume",)}
PET_GRID = 1.6
"""Voxels of PET are larger than those of CT in the plane by this factor, and half a PET voxel off."""


def sarcoma_pet_ct(
    n: int = 48,
    *,
    uptake: float = 0.8,
    texture: float = 0.6,
    volume: float = 0.7,
    shape: tuple[int, int, int] = (24, 48, 48),
    spacing: tuple[float, float, float] = (6.0, 4.0, 4.0),
    seed: int = 0,
) -> Synthetic:
    r"""PET in SUV and CT in HU on different grids, and the tumour's mask; will the patient develop distant metastases?

    Half of the patients do, as 24 of the published 48. Three independent numbers with the given d' shape the tumour:
    uptake (how much sugar it takes up), texture (how uneven its CT is) and volume. PET and CT both show the volume, so
    that part is redundant and the evidence of both counts it once; uptake is unique to PET and texture to CT:

    .. math:: \text{AUC}_\text{PET} = \Phi\bigl(\sqrt{(d_u^2 + d_v^2) / 2}\bigr), \qquad
              \text{AUC}_\text{both} = \Phi\bigl(\sqrt{(d_u^2 + d_t^2 + d_v^2) / 2}\bigr)

    By default 0.774 for PET, 0.743 for CT and 0.806 for both. ``shape=(144, 112, 112), spacing=(2.0, 2.0, 2.0)`` is the
    size of the published volumes.

    Not realistic: one thigh, one tumour, a star-shaped outline that may hold part of the bone; no necrosis but a mild
    drop of uptake towards the centre; no scatter or attenuation artefacts; PET and CT lie on each other exactly in the
    patient.

    Args:
      n: number of patients, at least 4.
      uptake: d' of log SUV.
      texture: d' of the unevenness of HU inside the tumour.
      volume: d' of log volume.
      shape: `(d, h, w)` of the CT and the mask; the PET spans the same space with fewer voxels.
      spacing: `(dz, dy, dx)` of the CT in mm.
      seed: of all draws.

    Returns:
      Cohort with the sources `pet`, `ct` and `mask` (on the grid of the CT), each with its spacing and affine; label
      `distant_metastases`; `hidden` has the three numbers, `suv` and `volume_ml`.

    Raises:
      ValueError: fewer than 4 patients, a negative d', or a grid of less than 120 mm in any direction.

    Example:
      >>> cohort, truth = sarcoma_pet_ct(8)
      >>> cohort.sources["ct"][0].shape, cohort.sources["pet"][0].shape, int(cohort.label.sum())
      ((24, 48, 48, 1), (24, 30, 30, 1), 4)

    References:
      Counts: Peng et al. 2020; the signal is ours.
    """
    import pandas as pd

    n = checked_n(n, 4, "sarcoma_pet_ct")
    strengths = dict(zip(SIGNALS, (uptake, texture, volume), strict=True))
    for name, value in strengths.items():
        if not (np.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value!r}; expected a d' of at least 0.")
    extent = tuple(count * step for count, step in zip(shape, spacing, strict=True))
    if min(extent) < 120:
        raise ValueError(f"the grid spans {extent} mm; expected at least 120 mm in every direction, to hold a tumour.")
    label = shuffled_levels(proportional([1, 1], n), column_stream(seed, "label"))
    signal = {}
    for name, strength in strengths.items():
        signal[name] = strength * (label - 0.5)
        for value in (0, 1):
            rows = label == value
            signal[name][rows] += normal_scores(int(rows.sum()), column_stream(seed, f"{name} {value}"))
    scene = _Thigh(signal["uptake"], signal["texture"], signal["volume"], shape, spacing, seed, "ct")
    identity = json.dumps(["sarcoma_pet_ct", seed, n, strengths, shape, spacing])
    rows = np.arange(n)
    cohort = Cohort.from_arrays(
        {
            "pet": Lazy(dataclasses.replace(scene, source="pet"), rows, "image", f"{identity} pet"),
            "ct": Lazy(scene, rows, "image", f"{identity} ct"),
            "mask": Lazy(dataclasses.replace(scene, source="mask"), rows, "mask", f"{identity} mask"),
        },
        table=pd.DataFrame(
            {"distant_metastases": label}, index=pd.Index([f"sarcoma_{i:04d}" for i in range(n)], dtype=object)
        ),
        roles={"distant_metastases": "label"},
        units={"pet": "SUV", "ct": "HU"},
        name="synthetic sarcoma PET-CT",
    )
    terms = {name: strengths[name] * signal[name] for name in SIGNALS}
    evidence = {source: np.sum([terms[name] for name in names], axis=0)[:, None] for source, names in SHOWN.items()}
    hidden = {**signal, "suv": scene.suv, "volume_ml": scene.volume_ml}
    together = np.sum(list(terms.values()), axis=0)[:, None]
    return Synthetic(cohort, Truth(("distant_metastases",), label[:, None], evidence, together, hidden))


@dataclasses.dataclass(frozen=True, eq=False)
class _Thigh:
    """PET, CT and mask of a thigh with a tumour."""

    uptake: Float[np.ndarray, "n"]
    texture: Float[np.ndarray, "n"]
    volume: Float[np.ndarray, "n"]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    seed: int
    source: str

    @property
    def suv(self) -> Float[np.ndarray, "n"]:
        """Uptake of the tumour, before the scanner blurs it."""
        return np.clip(5.5 * np.exp(0.5 * self.uptake), 1.2, 40)

    @property
    def volume_ml(self) -> Float[np.ndarray, "n"]:
        """Volume of the sphere that the outline varies."""
        return np.clip(70 * np.exp(0.65 * self.volume), 4, 420)

    def __call__(self, row: int) -> Image:
        shape, spacing, affine = self._grid()
        # Millimetres from the centre: z to the head, y to the back, x to the left.
        index = [np.arange(count) for count in shape]
        z = (affine[2, 0] * index[0] + affine[2, 3])[:, None, None]
        y = -(affine[1, 1] * index[1] + affine[1, 3])[None, :, None]
        x = -(affine[0, 2] * index[2] + affine[0, 3])[None, None, :]
        rng = case_stream(self.seed, row)
        leg = rng.uniform(0.82, 0.96) * min(self.shape[1] * self.spacing[1], self.shape[2] * self.spacing[2]) / 2
        fat, bone = rng.uniform(0.08, 0.2) * leg, (rng.normal(0, 0.04) * leg, rng.normal(0, 0.04) * leg)
        radius = (self.volume_ml[row] * 750 / np.pi) ** (1 / 3)
        angle = rng.uniform(0, 2 * np.pi)
        reach = max(leg - fat - 0.8 * radius, 0.1 * leg) * 0.75
        centre = (rng.normal(0, 0.06) * leg, reach * np.sin(angle), reach * np.cos(angle))
        dz, dy, dx = z - centre[0], y - centre[1], x - centre[2]
        distance = np.sqrt(dz**2 + dy**2 + dx**2)
        direction = np.stack(np.broadcast_arrays(dz, dy, dx)) / np.maximum(distance, 1e-6)
        outline = radius * (1 + 0.1 * directional_wave(direction, 3.0, 6, rng))
        tumour = distance - outline
        if self.source == "mask":
            return Image((tumour <= 0).astype(np.uint8)[..., None], spacing, affine, "label")
        around = np.sqrt(y**2 + x**2) + 0 * z
        femur = np.sqrt((y - bone[0]) ** 2 + (x - bone[1]) ** 2) + 0 * z
        noise = case_stream(self.seed, row, self.source)
        if self.source == "pet":
            values = self._suv(row, around - leg, femur, tumour, distance / outline, spacing, noise)
        else:
            values = self._hounsfield(row, (around - leg, fat), femur, tumour, spacing, noise)
        return Image(values[..., None].astype(np.float32), spacing, affine, "SUV" if self.source == "pet" else "HU")

    def _grid(self) -> tuple[tuple[int, int, int], tuple[float, float, float], np.ndarray]:
        shape, spacing = self.shape, self.spacing
        if self.source == "pet":
            shape = (shape[0], round(shape[1] / PET_GRID), round(shape[2] / PET_GRID))
            spacing = (spacing[0], spacing[1] * PET_GRID, spacing[2] * PET_GRID)
        affine = canonical_affine(shape, spacing)
        if self.source == "pet":
            affine[:2, 3] += [spacing[2] / 2, -spacing[1] / 2]
        return shape, spacing, affine

    def _hounsfield(
        self,
        row: int,
        skin: tuple[np.ndarray, float],
        femur: np.ndarray,
        tumour: np.ndarray,
        spacing: tuple[float, ...],
        rng: np.random.Generator,
    ) -> np.ndarray:
        surface, fat = skin
        soft, shape = max(spacing[1:]), surface.shape
        scale = max(9.0 / max(spacing), 1.0)
        image = np.full(shape, -1000.0)
        image = blend(image, -105.0 + 6 * smooth_noise(shape, scale, rng), edge(surface, soft))
        # Muscles are parted by thin sheets of fat.
        sheets = np.exp(-np.square(smooth_noise(shape, 26.0 / max(spacing), rng) / 0.09))
        image = blend(image, 56.0 - 70 * sheets, edge(surface + fat, soft))
        spread = 6 + 22 / (1 + np.exp(-1.3 * self.texture[row]))
        image = blend(image, 38.0 + spread * smooth_noise(shape, scale, rng), edge(tumour, soft))
        image = blend(image, 900.0, edge(femur - 14, soft))
        image = blend(image, -40.0, edge(femur - 8, soft))
        return np.clip(np.round(image + rng.normal(0, 10, shape)), -1024, 3071)

    def _suv(
        self,
        row: int,
        surface: np.ndarray,
        femur: np.ndarray,
        tumour: np.ndarray,
        depth: np.ndarray,
        spacing: tuple[float, ...],
        rng: np.random.Generator,
    ) -> np.ndarray:
        from scipy.ndimage import gaussian_filter

        image = 0.02 + 0.33 * edge(surface, max(spacing[1:]))
        image = blend(image, 0.55, edge(surface + 18, 12.0))
        image = blend(image, 0.4, edge(femur - 11, 6.0))
        hot = self.suv[row] * (0.75 + 0.25 * np.clip(depth, 0, 1) ** 2)
        image = blend(image, hot * (1 + 0.08 * smooth_noise(surface.shape, 2.0, rng)), edge(tumour, 3.0))
        # 6 mm full width at half maximum, as a clinical scanner has.
        image = gaussian_filter(image, [6 / 2.355 / step for step in spacing], mode="nearest")
        return np.maximum(image * (1 + 0.06 * rng.standard_normal(surface.shape)), 0)
