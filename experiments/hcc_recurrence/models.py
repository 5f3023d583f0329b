"""The models of the paper's table and further losses and widths, as recipes with their arguments."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.hcc_recurrence.config import Settings
from fusion_jax.data.tabular import Column, columns_to_json

__all__ = ["CLAIMS", "CLINICAL", "IMAGE", "PAPER", "RADIOMICS", "SELECTION", "SINGLES", "Printed", "models_of"]

IMAGE, CLINICAL, RADIOMICS = "deep, image only", "clinical (forest)", "radiomics (LASSO + forest)"
JOINT = "fusion D + joint loss"
LOGISTIC = "clinical (logistic regression)"

SINGLES = (RADIOMICS, IMAGE, CLINICAL, LOGISTIC)

SELECTION: Mapping[str, Any] = {"alpha": 0.05, "correction": "none"}
"""Pearson's test without correction: with Yates' the N/L ratio would have failed in the paper."""

LOSS_WEIGHTS: Mapping[str, float] = {"image": 0.25, "clinical": 0.25, "fused": 0.5}


class Printed(NamedTuple):
    """What the paper prints: mean and standard deviation over ten folds.

    Attributes:
      accuracy, accuracy_sd: in percent.
      auc, auc_sd: area under the ROC curve.
    """

    accuracy: float
    accuracy_sd: float
    auc: float
    auc_sd: float


PAPER: Mapping[str, Printed] = {
    RADIOMICS: Printed(67.04, 4.9, 0.6400, 0.03),
    IMAGE: Printed(69.52, 5.1, 0.7233, 0.06),
    CLINICAL: Printed(76.03, 10.0, 0.7532, 0.13),
    "fusion A": Printed(74.80, 4.1, 0.7880, 0.05),
    "fusion B": Printed(78.05, 3.2, 0.8045, 0.08),
    "fusion C": Printed(75.44, 7.0, 0.7649, 0.08),
    "fusion D": Printed(78.66, 3.9, 0.8248, 0.07),
    JOINT: Printed(80.49, 4.3, 0.8331, 0.03),
}
"""Table of results of Wang et al. 2020, by the names of our rows."""

CLAIMS: tuple[tuple[str, str, str], ...] = (
    ("fewer image features are better balanced", "fusion B", "fusion A"),
    ("a dense layer suits bits better than a convolution", "fusion D", "fusion C"),
    ("a dense layer on the bits is better than none", "fusion D", "fusion B"),
    ("the joint loss helps", JOINT, "fusion D"),
    ("fusion beats the image", JOINT, IMAGE),
    ("fusion beats the clinical factors", JOINT, CLINICAL),
)
"""Claims of the paper, as the model that should be better and the other one; fixed beforehand."""


def models_of(
    settings: Settings,
    columns: Sequence[Column],
    *,
    selection: Mapping[str, Any] | None,
    features: Path | None,
    weights: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Recipe and arguments of every model.

    Args:
      settings: of the preset.
      columns: declared factors.
      selection: among them in every fold; None where they were selected on all patients.
      features: table of radiomic features; without it the radiomics model is left out.
      weights: of the trunk, as recipes take them.
    """
    declared: dict[str, Any] = {"columns": columns_to_json(columns)}
    if selection is not None:
        declared["selection"] = dict(selection)
    shared = {"quality": "final", **settings.training}
    if settings.encoder is not None:
        shared["encoder"] = dict(settings.encoder)
    if weights is not None:
        shared["weights"] = {"image": dict(weights)}

    def published(model: str, **others: Any) -> dict[str, Any]:
        return {"recipe": "published", "arguments": {**shared, **declared, "model": model, **others}}

    def joint(model: str = "Fusion D, joint loss", **weights: float) -> dict[str, Any]:
        return published(model, objective="joint", loss_weights=weights or dict(LOSS_WEIGHTS))

    forest = {"trees": settings.trees, "leaf": 1}
    found: dict[str, dict[str, Any]] = {}
    if features is not None:
        found[RADIOMICS] = {
            "recipe": "random-forest",
            "arguments": {**forest, "features": "measurements", "table": str(features), "screen": "lasso"},
        }
    found[IMAGE] = {"recipe": "published", "arguments": {**shared, "model": "Deep (image only)"}}
    found[CLINICAL] = {"recipe": "random-forest", "arguments": {**forest, **declared, "unit": "patient"}}
    found |= {f"fusion {letter}": published(f"Fusion {letter}") for letter in "ABCD"}
    found[JOINT] = joint()
    found[LOGISTIC] = {"recipe": "logistic-regression", "arguments": {**declared, "unit": "patient"}}
    found |= {
        "fusion B, 9 image features": published("Fusion B", settings={"image_width": 9}),
        "fusion D + joint loss, equal weights": joint(image=1 / 3, clinical=1 / 3, fused=1 / 3),
        "fusion D + joint loss, learned weights": published("Fusion D, joint loss", objective="uncertainty"),
        "fusion D + joint loss, probabilities fused": joint("Fusion D, joint probabilities"),
    }
    return {name: model for name, model in found.items() if not settings.models or name in settings.models}
