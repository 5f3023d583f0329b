"""From a cohort's name to what every part of the experiment reads: images or their features, markers, splits."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.portal_hypertension.cohort import (
    dialled,
    make_cohort,
    other_livers,
    prepared,
    sarcoma,
    split_patients,
    user_cohort,
    with_markers,
)
from experiments.portal_hypertension.config import Settings
from fusion_jax.data import Cohort, Split, Splits
from fusion_jax.data.splits import Rows
from fusion_jax.models.deep import features
from fusion_jax.models.registry import make_recipe
from fusion_jax.records import atomic_path, write_json
from fusion_jax.training import run_key

__all__ = ["FEATURES", "Opened", "open_study"]

FEATURES = "features"
"""Source of image features that a trunk has computed; images themselves are `image`."""

FEW = 100
"""Patients; with fewer, a tenth of them is no test set, and a fifth is taken."""

TRUNK_TRAINING: Mapping[str, Any] = {
    "head": [],
    "dropout": 0.0,
    "learning_rate": 3e-3,
    "epochs": 60,
    "patience": 15,
    "augment": "horizontal-flip",
    "quality": "none",
}


class Opened(NamedTuple):
    """A cohort of the experiment.

    Attributes:
      cohort: of the ten rows of Table 1, with `clinical` and `source`.
      address: of it.
      source: of the images, or of their features.
      what: it is, for captions.
      fractions: of the patients in training, validation and test.
      images: address of the cohort with images, and the weights of the trunk; None where there is one cohort only.
      optimal: Bayes-optimal AUC of image, markers and both, where the cohort was made with a known truth.
    """

    cohort: Cohort
    address: Mapping[str, Any]
    source: str
    what: str
    fractions: tuple[float, float, float]
    images: tuple[Mapping[str, Any], Path] | None = None
    optimal: Mapping[str, float] | None = None

    @property
    def markers(self) -> Float[np.ndarray, "n t"]:
        """In native units."""
        own = self.cohort.sources["clinical"]
        return np.stack([np.asarray(own[row], np.float64) for row in range(len(self.cohort))])

    @property
    def label(self) -> Int[np.ndarray, "n"]:
        """0 or 1."""
        return np.asarray(self.cohort.label)

    def splits(self, repeats: int, seed: int) -> Splits:
        """Monte-Carlo splits; the first of 20 are those of 10."""
        return split_patients(self.cohort, repeats=repeats, fractions=self.fractions, seed=seed)

    def rows(self, repeats: int, seed: int) -> list[Rows]:
        """Rows of each of these splits."""
        return [split.rows(self.cohort) for split in self.splits(repeats, seed).splits]

    def stored_features(self) -> Float[np.ndarray, "n f"] | None:
        """Image features that the same trunk computed for every split."""
        if self.source != FEATURES:
            return None
        own = self.cohort.sources[FEATURES]
        return np.stack([np.asarray(own[row], np.float64) for row in range(len(self.cohort))])


def open_study(
    name: str,
    settings: Settings,
    out: Path,
    *,
    seed: int,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Opened:
    """The cohort of a name, prepared: its images are computed and written under `out` on the first call.

    Args:
      name: "livers", "sarcoma", "dial", or a folder.
      settings: of the preset.
      out: folder of the results.
      seed: of synthetic patients.
      progress: told what is read and how much of it.
    """

    def told(what: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(what, done, total)

    if name == "dial":
        width = int(settings.encoder.get("projection") or 64)
        found = dialled(settings.livers, width=width, seed=seed)
        auc = {part: found.truth.auc(part).value for part in (FEATURES, "clinical")} | {"both": found.truth.auc().value}
        cohort = prepared(lambda: found.cohort, out / "cohort", told("writing the cohort"))
        what = f"{len(cohort)} synthetic patients with linear signal"
        return Opened(cohort, {"shards": str(out / "cohort")}, FEATURES, what, settings.fractions, None, auc)
    if name == "livers" and settings.other_livers:
        return _livers_with_trunk(settings, out, seed, told)
    if name == "livers":

        def made() -> Cohort:
            return with_markers(make_cohort(settings.livers, size=settings.size, seed=seed))

        what = f"{settings.livers} synthetic livers"
    elif name == "sarcoma":
        made, what = partial(sarcoma, size=64), "48 patients with soft-tissue sarcoma, PET"
    else:

        def made() -> Cohort:
            return with_markers(user_cohort(Path(name), size=settings.size))

        what = f"the patients of {Path(name).name}"
    cohort = prepared(made, out / "cohort", told("reading the images"))
    fractions = (0.6, 0.2, 0.2) if len(set(cohort.patient_id)) < FEW else settings.fractions
    return Opened(cohort, {"shards": str(out / "cohort")}, "image", what, fractions)


def _livers_with_trunk(
    settings: Settings, out: Path, seed: int, told: Callable[[str], Callable[[int, int], None]]
) -> Opened:
    """Synthetic livers, and their features by a trunk that was trained on other synthetic livers."""
    from fusion_jax.data.synthetic import portal_hypertension_ct

    others = prepared(
        lambda: other_livers(settings.other_livers, size=settings.size, seed=seed + 1000),
        out / "other_livers",
        told("other livers, for the trunk"),
    )
    images = prepared(
        lambda: with_markers(make_cohort(settings.livers, size=settings.size, seed=seed)),
        out / "images",
        told("surfaces of the livers"),
    )
    trunk = out / "trunk"
    if not (trunk / "recipe.json").is_file():
        recipe = make_recipe("image-only", {**TRUNK_TRAINING, "encoder": dict(settings.encoder)})
        recipe.fit(others, Split(0, 0, tuple(others.case_id), (), ()), run_key(seed), trunk)
    weights = trunk / "weights.safetensors"
    if not weights.is_file():
        _export(trunk, weights)

    def computed() -> Cohort:
        seen = features(trunk, others, np.arange(len(others)))["image"]
        own = features(trunk, images, np.arange(len(images)))["image"]
        # By the other livers: nobody of the study has a part in it.
        spread = np.where(seen.std(axis=0) > 1e-6, seen.std(axis=0), 1.0)
        found = images.with_source(FEATURES, ((own - seen.mean(axis=0)) / spread).astype(np.float32))
        return found.only(FEATURES, "clinical")

    cohort = prepared(computed, out / "features", told("features of the trunk"))
    truth = portal_hypertension_ct(settings.livers, seed=seed).truth
    write_json(out / "trunk" / "other_livers.json", {"patients": len(others), "label": "quarter of the relief"})
    return Opened(
        cohort,
        {"shards": str(out / "features")},
        FEATURES,
        f"{len(cohort)} synthetic livers",
        settings.fractions,
        ({"shards": str(out / "images")}, weights),
        {FEATURES: truth.auc("ct").value, "clinical": truth.auc("clinical").value, "both": truth.auc().value},
    )


def _export(trunk: Path, path: Path) -> None:
    """The trunk's variables under their flat names, as recipes take pretrained weights."""
    from safetensors.numpy import save_file

    with np.load(trunk / "weights.npz", allow_pickle=False) as file:
        arrays = {name: np.ascontiguousarray(file[name]) for name in file.files}
    with atomic_path(path) as temporary:
        save_file(arrays, temporary)
