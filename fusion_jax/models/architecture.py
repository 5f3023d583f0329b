"""Networks from a genotype, and which sources of a cohort they take."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import linen as nn

from fusion_jax.nas.genotype import genotype_from_json, read_genotype
from fusion_jax.records.arguments import close_to
from fusion_jax.wording import listed

__all__ = ["derived_network", "network_sources", "of_genotype_file", "searched_on"]

OWN = ("genotype", "sources", "clinical", "outputs", "dtype", "parent", "name")
"""What follows from cohort and recipe."""


def network_sources(shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Image and clinical sources among those of these shapes, in their order.

    Args:
      shapes: source to the shape of a case.

    Raises:
      ValueError: no image, or images of several shapes: the cells add them up voxel by voxel.

    Example:
      >>> network_sources({"pet": (8, 8, 8, 1), "ct": (8, 8, 8, 1), "age": (1,)})
      (('pet', 'ct'), ('age',))
    """
    images = tuple(name for name, shape in shapes.items() if len(shape) > 1)
    if not images:
        raise ValueError(f"the cells fuse images, and there is none among {listed(shapes)}; expected at least one.")
    if len({shapes[name] for name in images}) > 1:
        found = ", ".join(f"{name} {tuple(shapes[name])}" for name in images)
        raise ValueError(
            f"the images have several shapes: {found}; expected one, since their sum enters the network. Bring them to "
            "one grid in `preprocess` (resample, crop_or_pad), with as many channels."
        )
    return images, tuple(name for name, shape in shapes.items() if len(shape) == 1)


def derived_network(
    genotype: Mapping[str, Any],
    settings: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    outputs: int,
    dtype: str = "float32",
) -> nn.Module:
    """The network of a genotype for sources of certain shapes.

    Args:
      genotype: as JSON.
      settings: attributes of `fusion_jax.nas.DerivedNet`, such as `layout` and `channels`.
      shapes: source to the shape of a case.
      outputs: columns of the logits.
      dtype: of the computation.

    Raises:
      ValueError: cells for another number of images, a setting that does not exist, or images of several shapes.

    Example:
      >>> from fusion_jax.nas.genotype import DARTS_V2, genotype_to_json
      >>> module = derived_network(genotype_to_json(DARTS_V2), {"layout": "NR"}, {"ct": (8, 8, 1)}, outputs=2)
      >>> module.sources
      ('ct',)
    """
    from fusion_jax.nas.supernet import DerivedNet

    images, clinical = network_sources(shapes)
    known = tuple(name for name in inspect.signature(DerivedNet).parameters if name not in OWN)
    for name in settings:
        if name not in known:
            raise ValueError(f"network of a genotype: no setting {name!r}; {close_to(name, known)}")
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    return DerivedNet(
        genotype=genotype_from_json(genotype, "genotype"),
        sources=images,
        clinical=clinical,
        outputs=outputs,
        dtype=dtype,
        **given,
    )


def of_genotype_file(path: str | Path) -> dict[str, Any]:
    """Arguments of the recipe `genotype` for a file that a search wrote.

    Settings of the network and sources come from the record of the search, where the file has one.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it holds no genotype.
    """
    read_genotype(path)
    stored = json.loads(Path(path).read_text(encoding="utf-8"))
    facts = (stored.get("facts") or {}).get("record") or {} if "genotype" in stored else {}
    arguments = {"genotype": stored.get("genotype", stored)}
    if facts.get("network"):
        arguments["settings"] = facts["network"]
    if facts.get("sources"):
        arguments["inputs"] = facts["sources"]
    return arguments


def searched_on(path: str | Path) -> frozenset[str]:
    """Cases on which the genotype of a file was searched; none where the file does not tell.

    Args:
      path: of the file.
    """
    stored = json.loads(Path(path).read_text(encoding="utf-8"))
    record = (stored.get("facts") or {}).get("record") or {}
    return frozenset(case for half in record.get("halves", ()) for case in half)
