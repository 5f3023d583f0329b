"""Permutation importance of every feature in four models, with the encoder of the images run once.

A trained model is asked again with its image features as inputs: the encoder of the images is replaced by one that
passes them through, and the member of a probability fusion that reads the image by one that repeats its logit.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from experiments.breast_mri.encoding import feature_groups
from fusion_jax.data import Cohort
from fusion_jax.data.clinical import encoded_rows
from fusion_jax.data.splits import Split
from fusion_jax.encoders import PassThrough
from fusion_jax.encoders.stored import load_arrays
from fusion_jax.evaluation.importance import Importance, permutation_importance
from fusion_jax.fusion import FusionClassifier, ProbabilityFusion
from fusion_jax.models.deep import WEIGHTS, DeepRecipe, features
from fusion_jax.models.preparation import Preparation
from fusion_jax.models.registry import load_recipe
from fusion_jax.models.strategies import published

__all__ = ["FOUR", "PAPER_MEDIANS", "feature_importance", "tabular_model"]

FOUR = ("Non-Image-Only", "Probability Fusion [P,P]", "Feature Fusion [L,S]", "Learned Feature Fusion [L,L]")
"""Models whose ranks are averaged."""

PAPER_MEDIANS: Mapping[str, tuple[float, float, float, float]] = {
    "indication": (21.26, 8.29, 5.72, 7.17),
    "software_version": (2.71, 1.14, 0.35, 0.96),
    "age_years": (2.55, 0.64, 0.93, 1.74),
    "crop_height_mm": (1.81, 0.33, 0.55, 0.80),
    "imaging_frequency_mhz": (1.01, 1.11, 0.31, 0.31),
    "max_intensity": (2.50, 0.21, 0.00, 0.31),
    "background_enhancement": (1.33, 0.14, 0.23, 0.11),
    "reconstruction_diameter_mm": (0.13, 0.31, 0.03, 0.44),
    "pixel_spacing_mm": (1.60, 0.83, -0.00, -0.05),
    "repetition_time_ms": (0.69, 0.11, 0.18, 0.15),
    "breast_density": (0.45, 0.16, 0.16, 0.29),
    "crop_width_mm": (0.23, -0.01, 0.03, 0.12),
    "flip_angle_deg": (-0.05, -0.00, -0.06, 0.05),
    "echo_time_ms": (0.67, 0.05, 0.02, 0.15),
    "echo_train_length": (0.61, 0.03, 0.10, 0.02),
    "field_strength_t": (0.81, 0.00, 0.05, 0.32),
    "laterality": (0.13, -0.01, -0.01, -0.05),
    "shift_days": (0.07, 0.07, 0.05, 0.07),
}
"""Median loss of AUC in percent, in the order of `FOUR`; the paper's table and, for the last seven, its draws."""


def feature_importance(
    folder: Path, cohort: Cohort, split: Split, *, permutations: int = 30, seed: int = 0, resamples: int = 200
) -> Importance:
    """Loss of AUC, in percent, when the test patients exchange one feature: images as they are, no copies of them.

    Dummies of a feature move together, as rows of their block (reading B1). Women exchange all their breasts at once,
    with women of as many breasts.

    Args:
      folder: of a training.
      cohort: that it was trained on.
      split: whose test cases are asked about.
      permutations: of every feature.
      seed: of the permutations, which models share.
      resamples: of the test patients, for the intervals.
    """
    rows = split.rows(cohort).test
    answer, inputs, names = tabular_model(folder, cohort, split)
    return permutation_importance(
        answer,
        inputs,
        cohort.label[rows].astype(int),
        groups=feature_groups(names),
        repeats=permutations,
        seed=seed,
        patients=cohort.patient_id[rows],
        batched=True,
        resamples=resamples,
    )


def tabular_model(
    folder: Path, cohort: Cohort, split: Split
) -> tuple[Callable[[Mapping[str, Any]], Float[np.ndarray, "n"]], dict[str, np.ndarray], tuple[str, ...]]:
    """A trained model as a function of what its encoder of images said, and of the encoded features.

    Returns:
      The function, to probabilities; its inputs for the test cases of the split; the names of the encoded features.
    """
    recipe = load_recipe(folder)
    if not isinstance(recipe, DeepRecipe) or recipe.model is None:
        raise ValueError(f"{folder}: {recipe.name}; expected a training of a published network.")
    rows = split.rows(cohort).test
    stored = json.loads((folder / "preparation.json").read_text(encoding="utf-8"))
    table = Preparation.from_json(stored).tables["clinical"]
    inputs = {"clinical": encoded_rows(table, cohort, rows, split.train).astype(np.float32)}
    module: Any = published(recipe.model, recipe.settings, recipe.encoder)
    variables = load_arrays(folder / WEIGHTS)
    if "image" in module.sources:
        said = features(folder, cohort, rows)["image"]
        module, variables, inputs["image"] = _behind_the_encoder(module, variables, said)
    variables = jax.tree.map(jax.numpy.asarray, variables)

    @jax.jit
    def forward(inputs: Mapping[str, Array]) -> Array:
        everyone = jax.numpy.ones(inputs["clinical"].shape[0], bool)
        outputs = module.apply(variables, inputs, present=dict.fromkeys(inputs, everyone), valid=everyone, train=False)
        return jax.nn.sigmoid(outputs.logits[:, 0])

    return (
        lambda changed: np.asarray(forward({name: changed[name] for name in inputs}), np.float64),
        inputs,
        table.names,
    )


def _behind_the_encoder(
    module: FusionClassifier | ProbabilityFusion, variables: Mapping[str, Any], said: Float[np.ndarray, "n f"]
) -> tuple[Any, dict[str, Any], Float[np.ndarray, "n f"]]:
    """The module with what the image's part said as its input."""
    if isinstance(module, FusionClassifier):
        return module.clone(encoders={**module.encoders, "image": PassThrough()}), dict(variables), said
    member = FusionClassifier({"image": PassThrough()})
    repeated = {"classifier": {"kernel": np.ones((1, 1), np.float32), "bias": np.zeros(1, np.float32)}}
    clipped = np.clip(np.asarray(said, np.float64), 1e-12, 1 - 1e-12)
    logit = (np.log(clipped) - np.log1p(-clipped)).astype(np.float32)
    params = {**variables["params"], "members_image": repeated}
    return module.clone(members={**module.members, "image": member}), {**variables, "params": params}, logit
