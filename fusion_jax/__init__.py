"""Which way of fusing medical images with clinical data works on a cohort, by how much, and why.

The names below are imported on first use, so that `import fusion_jax` and the help of every command stay instant.
"""

from typing import TYPE_CHECKING

from fusion_jax.lazy import lazy_attributes

if TYPE_CHECKING:
    from fusion_jax import (
        arrays,
        commands,
        data,
        detection,
        encoders,
        evaluation,
        fusion,
        models,
        nas,
        ops,
        quality,
        records,
        reporting,
        training,
    )
    from fusion_jax.cpu import tune_cpu
    from fusion_jax.evaluation import evaluate
    from fusion_jax.models.comparison import compare
    from fusion_jax.quality import FusionQuality, fusion_quality, plan_encoding, sweep_gamma

__version__ = "0.1.0"

__all__ = [
    "FusionQuality",
    "__version__",
    "arrays",
    "commands",
    "compare",
    "data",
    "detection",
    "encoders",
    "evaluate",
    "evaluation",
    "fusion",
    "fusion_quality",
    "models",
    "nas",
    "ops",
    "plan_encoding",
    "quality",
    "records",
    "reporting",
    "sweep_gamma",
    "training",
    "tune_cpu",
]

_HOMES = {
    "FusionQuality": "fusion_jax.quality",
    "compare": "fusion_jax.models.comparison",
    "evaluate": "fusion_jax.evaluation",
    "fusion_quality": "fusion_jax.quality",
    "plan_encoding": "fusion_jax.quality",
    "sweep_gamma": "fusion_jax.quality",
    "tune_cpu": "fusion_jax.cpu",
}

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one that is found here
    # What has no home is a package.
    __getattr__ = lazy_attributes(__name__, dict.fromkeys(__all__, "") | _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
