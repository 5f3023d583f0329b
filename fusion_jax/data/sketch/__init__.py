"""A first `cohort.toml` by looking at a table and at image files; every decision is written down with its reason."""

from fusion_jax.data.sketch.columns import Column, Ids, find_ids, look_at_columns
from fusion_jax.data.sketch.files import FoundSource, Matches, find_sources, match_files
from fusion_jax.data.sketch.write import Answers, NoFiles, Sketch, known_ids, sketch_cohort

__all__ = [
    "Answers",
    "Column",
    "FoundSource",
    "Ids",
    "Matches",
    "NoFiles",
    "Sketch",
    "find_ids",
    "find_sources",
    "known_ids",
    "look_at_columns",
    "match_files",
    "sketch_cohort",
]
