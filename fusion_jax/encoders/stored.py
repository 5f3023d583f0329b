"""Variables of a model as one archive of arrays, beside which a recipe says what they belong to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax.encoders.pretrained import flatten, unflatten
from fusion_jax.records import atomic_path

__all__ = ["load_arrays", "save_arrays"]


def save_arrays(path: Path, variables: Mapping[str, Any]) -> None:
    """Write variables as an archive of arrays, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **flatten(variables))


def load_arrays(path: Path) -> dict[str, Any]:
    """Variables from the archive that `save_arrays` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return {"params": {}, **unflatten({name: file[name] for name in file.files})}
