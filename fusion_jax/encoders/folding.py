r"""Batch norm folded into the convolutions before it, for use after training.

.. math:: \gamma \frac{w * x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta = (s w) * x + (\beta - s \mu),
          \qquad s = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}

The same function with fewer operations: an exported model needs no running statistics.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from flax import linen as nn
from jax import lax

from fusion_jax.arrays import Variables

__all__ = ["fold_batch_norm"]

ModuleType = TypeVar("ModuleType", bound=nn.Module)


def fold_batch_norm(module: ModuleType, variables: Variables) -> tuple[ModuleType, Variables]:
    r"""The same function without batch norm: `norm="none"` in every encoder, and its scales in the kernels.

    .. math:: \gamma \frac{w * x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta = (s w) * x + (\beta - s \mu),
              \qquad s = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}

    Args:
      module: an encoder of this package, or a module that holds encoders in its attributes, in mappings or sequences
        too. What has no batch norm stays as it is.
      variables: of the module, after training; unchanged.

    Returns:
      The module without batch norm, and its variables. `batch_stats` is gone. Results with `train=False` are the same
      but for rounding; the folded module is not for training.

    Raises:
      ValueError: batch norm that no convolution of the same name precedes, in a module that is none of ours.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fusion_jax.encoders import SmallCNN
      >>> x = jnp.ones((1, 8, 8, 1))
      >>> encoder = SmallCNN(widths=(4,), norm="batch")
      >>> variables = encoder.init(jax.random.key(0), x, train=False)
      >>> folded, fewer = fold_batch_norm(encoder, variables)
      >>> folded.norm, jax.tree.map(jnp.shape, fewer)
      ('none', {'params': {'conv1': {'bias': (4,), 'kernel': (3, 3, 1, 4)}}})
    """
    folded, params = _fold_module(module, variables["params"], variables.get("batch_stats", {}), type(module).__name__)
    others = {name: value for name, value in variables.items() if name not in ("params", "batch_stats")}
    return folded, {**others, "params": params}


def _fold_module(module: Any, params: Mapping, statistics: Mapping, where: str) -> tuple[Any, dict[str, Any]]:
    """The module and its parameters; `statistics` is the part of `batch_stats` that belongs to it."""
    if not statistics:
        return module, dict(params)
    if getattr(module, "norm", None) == "batch":
        return module.clone(norm="none"), _fold_tree(params, statistics, module.epsilon, where)
    params, left = dict(params), set(statistics)
    replaced: dict[str, Any] = {}
    for name in _attributes(module):
        value = getattr(module, name)

        # Flax names a module after the attribute, and the key or place within it, that it was handed over in.
        def fold_inside(value: Any, path: str) -> Any:
            if isinstance(value, nn.Module):
                path = value.name or path
                left.discard(path)
                value, inner = _fold_module(value, params.get(path, {}), statistics.get(path, {}), f"{where}.{path}")
                if path in params:
                    params[path] = inner
                return value
            if isinstance(value, Mapping):
                return {key: fold_inside(inner, f"{path}_{key}") for key, inner in value.items()}
            if isinstance(value, list | tuple):
                return type(value)(fold_inside(inner, f"{path}_{i}") for i, inner in enumerate(value))
            return value

        if _holds_modules(value):
            replaced[name] = fold_inside(value, name)
    if left:
        raise ValueError(
            f"{where} has batch norm in {', '.join(sorted(left))}, made in its own code: it cannot be folded from "
            "outside. Use an encoder of fusion_jax.encoders, or the variables as they are."
        )
    return module.clone(**replaced), params


def _fold_tree(params: Mapping, statistics: Mapping, epsilon: float, where: str) -> dict[str, Any]:
    """Parameters of an encoder without norm: each `bn` goes into the `conv` of the same name."""
    folded = dict(params)
    for name, inner in statistics.items():
        if "mean" not in inner:
            folded[name] = _fold_tree(params[name], inner, epsilon, f"{where}/{name}")
            continue
        before = name.replace("bn", "conv")
        if before == name or before not in params:
            raise ValueError(f"{where}: no convolution {before!r} precedes the batch norm {name!r}.")
        norm = folded.pop(name)
        scale = norm["scale"] * lax.rsqrt(inner["var"] + epsilon)
        kernel = params[before]["kernel"]
        folded[before] = {
            "kernel": kernel * scale.reshape((1,) * (kernel.ndim - 1) + (-1,)),
            "bias": norm["bias"] - scale * inner["mean"],
        }
    return folded


def _attributes(module: nn.Module) -> list[str]:
    return [name for name in type(module).__dataclass_fields__ if name not in ("parent", "name")]


def _holds_modules(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_modules, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_modules, value))
    return isinstance(value, nn.Module)
