"""From files to batches: cohorts, their tables and images, splits, augmentation, and cohorts with known truth.

The names below are imported on first use: a command that reads a table needs no JAX, and help needs neither.
"""

from typing import TYPE_CHECKING

from fusion_jax.lazy import homes_of, lazy_attributes

if TYPE_CHECKING:
    from fusion_jax.data.address import cohort_address, open_address
    from fusion_jax.data.batches import Batches
    from fusion_jax.data.builders import open_builder
    from fusion_jax.data.case_images import in_memory, preprocessed
    from fusion_jax.data.coco import read_coco, write_coco
    from fusion_jax.data.cohort import Arrays, Boxes, Case, Cohort, Columns, Lazy, Source
    from fusion_jax.data.collections import load
    from fusion_jax.data.concatenation import concatenate
    from fusion_jax.data.definition import Flow
    from fusion_jax.data.encoding import encode
    from fusion_jax.data.folder import open_cohort
    from fusion_jax.data.image import Image, UnreadableFile
    from fusion_jax.data.images.pipeline import build_pipeline
    from fusion_jax.data.integrity import check_cohort
    from fusion_jax.data.readers import peek_image, read_image
    from fusion_jax.data.samples import (
        CLINICAL_INPUTS,
        OUTCOME_COLUMNS,
        SarcomaSample,
        clinical_inputs,
        soft_tissue_sarcoma,
    )
    from fusion_jax.data.shards import open_shards, write_shards
    from fusion_jax.data.splits import (
        Split,
        Splits,
        check_leakage,
        draw_once,
        given,
        k_fold,
        leave_site_out,
        load_splits,
        monte_carlo,
        nested,
        save_splits,
    )
    from fusion_jax.data.tables import read_table

_HOMES = {
    "address": ("cohort_address", "open_address"),
    "batches": ("Batches",),
    "builders": ("open_builder",),
    "case_images": ("in_memory", "preprocessed"),
    "coco": ("read_coco", "write_coco"),
    "cohort": ("Arrays", "Boxes", "Case", "Cohort", "Columns", "Lazy", "Source"),
    "collections": ("load",),
    "concatenation": ("concatenate",),
    "definition": ("Flow",),
    "encoding": ("encode",),
    "folder": ("open_cohort",),
    "image": ("Image", "UnreadableFile"),
    "images.pipeline": ("build_pipeline",),
    "integrity": ("check_cohort",),
    "readers": ("peek_image", "read_image"),
    "samples": ("CLINICAL_INPUTS", "OUTCOME_COLUMNS", "SarcomaSample", "clinical_inputs", "soft_tissue_sarcoma"),
    "shards": ("open_shards", "write_shards"),
    "splits": (
        "Split",
        "Splits",
        "check_leakage",
        "draw_once",
        "given",
        "k_fold",
        "leave_site_out",
        "load_splits",
        "monte_carlo",
        "nested",
        "save_splits",
    ),
    "tables": ("read_table",),
}

__all__ = [
    "CLINICAL_INPUTS",
    "OUTCOME_COLUMNS",
    "Arrays",
    "Batches",
    "Boxes",
    "Case",
    "Cohort",
    "Columns",
    "Flow",
    "Image",
    "Lazy",
    "SarcomaSample",
    "Source",
    "Split",
    "Splits",
    "UnreadableFile",
    "build_pipeline",
    "check_cohort",
    "check_leakage",
    "clinical_inputs",
    "cohort_address",
    "concatenate",
    "draw_once",
    "encode",
    "given",
    "in_memory",
    "k_fold",
    "leave_site_out",
    "load",
    "load_splits",
    "monte_carlo",
    "nested",
    "open_address",
    "open_builder",
    "open_cohort",
    "open_shards",
    "peek_image",
    "preprocessed",
    "read_coco",
    "read_image",
    "read_table",
    "save_splits",
    "soft_tissue_sarcoma",
    "write_coco",
    "write_shards",
]

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one that is found here
    __getattr__ = lazy_attributes(__name__, homes_of(__name__, _HOMES))


def __dir__() -> list[str]:
    return sorted(__all__)
