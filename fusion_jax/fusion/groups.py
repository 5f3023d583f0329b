"""Which parameters of a fusion model belong to which source: for optimisers by group, and for training in stages.

Training in stages: first `joint(objective, {source: 1.0, ...})`, without the fused logits, over heads of the sources;
then `frozen_encoders` of the classifier with the fused loss alone, and `frozen_rates` for an optimiser that decays
weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from fusion_jax.wording import listed

__all__ = ["frozen_rates", "parameter_groups"]

PREFIXES = ("encoders_", "source_head_", "members_")
FUSED = "fused"
SHOWN = 5
"""Names that a message lists."""


def parameter_groups(params: Mapping[str, Any]) -> Any:
    """The source of every parameter: that of its encoder, head or member, or "fused" for operator, head and last layer.

    These are the groups of separate optimisers: with `optax.partition` every group can have its own.

    Args:
      params: the collection `params` of a `FusionClassifier`, `ProbabilityFusion` or `AverageFusion`, or its shapes.

    Returns:
      Names, in the structure of `params`.

    Example:
      >>> parameter_groups({"encoders_image": {"kernel": 1}, "classifier": {"kernel": 2}})
      {'classifier': {'kernel': 'fused'}, 'encoders_image': {'kernel': 'image'}}
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: _group(path[0].key), dict(params))


def frozen_rates(params: Mapping[str, Any], sources: Sequence[str]) -> dict[str, float]:
    """Rates of zero for the encoders of some sources, as `Optimiser(rates=...)` takes them.

    Encoders without parameters are left out, since a rate must name a parameter.

    Args:
      params: the collection `params` of a `FusionClassifier`, or its shapes.
      sources: whose encoders are not to move.

    Raises:
      ValueError: none of the sources has an encoder with parameters.

    Example:
      >>> frozen_rates({"encoders_image": {"kernel": 1}, "classifier": {"kernel": 2}}, ("image", "age"))
      {'encoders_image': 0.0}
    """
    rates = {f"encoders_{name}": 0.0 for name in sources if params.get(f"encoders_{name}")}
    if not rates:
        having = sorted(name.removeprefix("encoders_") for name in params if name.startswith("encoders_"))
        raise ValueError(
            f"no encoder of {listed(sources, SHOWN) or 'any source'} has parameters; those that do: "
            f"{listed(having, SHOWN) or 'none'}."
        )
    return rates


def _group(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), FUSED)
