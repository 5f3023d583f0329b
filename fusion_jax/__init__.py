"""Which way of fusing medical images with clinical data works on a cohort, by how much, and why.

The names below are imported on first use, so that `import fusion_jax` and the help of every command stay instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusion_jax import (
        arrays,
        commands,
        data,
        encoders,
        evaluation,
        fusion,
        models,
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
    "encoders",
    "evaluate",
    "evaluation",
    "fusion",
    "fusion_quality",
    "models",
    "ops",
    "plan_encoding",
    "quality",
    "records",
    "reporting",
    "sweep_gamma",
    "training",
    "tune_cpu",
]

_PACKAGES = frozenset(
    {
        "arrays",
        "commands",
        "data",
        "encoders",
        "evaluation",
        "fusion",
        "models",
        "ops",
        "quality",
        "records",
        "reporting",
        "training",
    }
)
_HOMES = dict.fromkeys(("FusionQuality", "fusion_quality", "plan_encoding", "sweep_gamma"), "fusion_jax.quality") | {
    "compare": "fusion_jax.models.comparison",
    "evaluate": "fusion_jax.evaluation",
    "tune_cpu": "fusion_jax.cpu",
}


if not TYPE_CHECKING:  # a type checker would take every misspelt name for one that is found here

    def __getattr__(name: str) -> object:
        if name in _PACKAGES:
            return import_module(f"fusion_jax.{name}")
        if name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module 'fusion_jax' has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
