"""The cohort of the liver cancer experiment: synthetic, since the study's CT is not public.

Wang W. et al. 2020; specs/hcc_fusion.md. Patients, classes and slices of Table 2 hold exactly at 167 patients.
"""

import dataclasses

import numpy as np

from fusion_jax.data import Boxes, Cohort, Image, Lazy
from fusion_jax.data.images.intensity import normalise_channels, window
from fusion_jax.data.images.phases import stack_phases
from fusion_jax.data.images.pipeline import IMAGENET_MEAN, IMAGENET_STD
from fusion_jax.data.synthetic import PHASES, liver_cancer_ct

__all__ = ["AlignedPhases", "make_cohort"]

LOW_HU, HIGH_HU = -70.0, 180.0


@dataclasses.dataclass(frozen=True)
class AlignedPhases:
    """Lesion of a slice in three phases, aligned by the centres of its boxes and stacked as channels."""

    cohort: Cohort
    size: int

    def __call__(self, row: int) -> Image:
        boxes: Boxes = self.cohort.boxes[row] if self.cohort.boxes else Boxes(np.zeros((0, 4)), np.zeros(0, int))
        order = np.argsort(boxes.classes)
        phases = [self.cohort.image(name, row) for name in PHASES]
        stacked = stack_phases(phases, boxes.corners[order], size=self.size)
        windowed = window(stacked, low=LOW_HU, high=HIGH_HU)
        return normalise_channels(windowed, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    def identity(self) -> str:
        """Which images these are; hashes the phases, so it is asked only where a fingerprint is."""
        return f"{self.cohort.fingerprint} {self.size}"


def make_cohort(n: int = 167, *, size: int = 224, seed: int = 0) -> Cohort:
    """Slices of `n` patients, `(size, size, 3)`: the lesion in the plain, arterial and portal phase."""
    phases = liver_cancer_ct(n, seed=seed).cohort
    aligned = AlignedPhases(phases, size)
    source = Lazy(aligned, np.arange(len(phases)), "image", aligned.identity)
    return dataclasses.replace(
        phases.with_source("image", source).only("image", "clinical"), boxes=None, box_classes=()
    )
