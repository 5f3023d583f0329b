"""Architecture search: cells that fuse image modalities, found by gradient descent.

The names are imported on first use: a genotype is read and drawn without JAX.
"""

from typing import TYPE_CHECKING

from fusion_jax.lazy import homes_of, lazy_attributes

if TYPE_CHECKING:
    from fusion_jax.nas.cell import DerivedCell, MixedCell
    from fusion_jax.nas.genotype import (
        DARTS_OPERATIONS,
        DARTS_V1,
        DARTS_V2,
        OPERATIONS,
        Genotype,
        derive,
        dot,
        genotype_from_json,
        genotype_to_json,
        random_genotype,
        read_genotype,
        skip_share,
        uses_inputs,
        write_genotype,
    )
    from fusion_jax.nas.operations import Op, operation_parameters
    from fusion_jax.nas.supernet import (
        DerivedNet,
        SuperNet,
        architecture_shapes,
        derived_parameters,
        supernet_parameters,
    )

_HOMES = {
    "cell": (
        "DerivedCell",
        "MixedCell",
    ),
    "genotype": (
        "DARTS_OPERATIONS",
        "DARTS_V1",
        "DARTS_V2",
        "OPERATIONS",
        "Genotype",
        "derive",
        "dot",
        "genotype_from_json",
        "genotype_to_json",
        "random_genotype",
        "read_genotype",
        "skip_share",
        "uses_inputs",
        "write_genotype",
    ),
    "operations": (
        "Op",
        "operation_parameters",
    ),
    "supernet": (
        "DerivedNet",
        "SuperNet",
        "architecture_shapes",
        "derived_parameters",
        "supernet_parameters",
    ),
}

__all__ = [
    "DARTS_OPERATIONS",
    "DARTS_V1",
    "DARTS_V2",
    "OPERATIONS",
    "DerivedCell",
    "DerivedNet",
    "Genotype",
    "MixedCell",
    "Op",
    "SuperNet",
    "architecture_shapes",
    "derive",
    "derived_parameters",
    "dot",
    "genotype_from_json",
    "genotype_to_json",
    "operation_parameters",
    "random_genotype",
    "read_genotype",
    "skip_share",
    "supernet_parameters",
    "uses_inputs",
    "write_genotype",
]

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one that is found here
    __getattr__ = lazy_attributes(__name__, homes_of(__name__, _HOMES))


def __dir__() -> list[str]:
    return sorted(__all__)
