"""The cohort of the portal hypertension experiment: synthetic, since the study's CT is not public.

Wang Y. et al. 2023; specs/fusion_quality.md, section 2. 198 patients, 119 with a pressure gradient of 5 mmHg or more.
"""

import dataclasses

import numpy as np

from fusion_jax.data import Cohort, Image, Lazy
from fusion_jax.data.images.intensity import window
from fusion_jax.data.liver import left_lobe_image
from fusion_jax.data.synthetic import LIVER_LABELS, portal_hypertension_ct

__all__ = ["LobeSurface", "make_cohort"]

LOW_HU, HIGH_HU = -100.0, 240.0


@dataclasses.dataclass(frozen=True)
class LobeSurface:
    """Surface of the left hepatic lobe of a patient: three adjacent slices, turned to a common axis, as channels."""

    cohort: Cohort
    size: int

    def __call__(self, row: int) -> Image:
        labels = self.cohort.image("labels", row)
        liver = np.isin(labels.values, [LIVER_LABELS["liver"], LIVER_LABELS["left lateral segment"]])
        masks = {"liver": labels._replace(values=liver.astype(np.uint8))}
        for name in ("gallbladder", "inferior vena cava"):
            masks[name] = labels._replace(values=(labels.values == LIVER_LABELS[name]).astype(np.uint8))
        surface = left_lobe_image(
            self.cohort.image("ct", row),
            masks["liver"],
            gallbladder=masks["gallbladder"],
            vena_cava=masks["inferior vena cava"],
            size=(self.size, self.size),
        )
        return window(surface, low=LOW_HU, high=HIGH_HU)

    def identity(self) -> str:
        """Which images these are; hashes the volumes, so it is asked only where a fingerprint is."""
        return f"{self.cohort.fingerprint} {self.size}"


def make_cohort(n: int = 198, *, size: int = 224, seed: int = 0) -> Cohort:
    """Liver surfaces `(size, size, 3)` in [0, 1] and three blood markers."""
    volumes = portal_hypertension_ct(n, seed=seed).cohort
    surfaces = LobeSurface(volumes, size)
    source = Lazy(surfaces, np.arange(len(volumes)), "image", surfaces.identity)
    return volumes.with_source("image", source).only("image", "clinical")
