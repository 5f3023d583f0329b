"""TensorFlow Datasets builders of the collections, known to `tfds.builder` once this module is imported.

    import tensorflow_datasets as tfds
    import fusion_jax.data.collections.builders
    builder = tfds.builder("jsrt", data_dir=...)
    builder.download_and_prepare()      # reads $FUSION_JAX_DATA/jsrt, writes array_record
    cohort = open_shards(builder.data_dir)

TensorFlow itself is not needed: read with `as_data_source`, not with `as_dataset`.
"""

from typing import Any

from fusion_jax.data.collections.catalogue import load
from fusion_jax.data.shards import cohort_builder

__all__ = ["CovidCxr", "Ham10000Small", "Jsrt", "StsPetct"]

CohortBuilder: Any = cohort_builder()


class StsPetct(CohortBuilder):
    """Builder of `sts_petct`."""

    name = "sts_petct"

    def __init__(self, **others: Any) -> None:
        super().__init__(cohort=load("sts_petct"), **others)


class Jsrt(CohortBuilder):
    """Builder of `jsrt`."""

    name = "jsrt"

    def __init__(self, **others: Any) -> None:
        super().__init__(cohort=load("jsrt"), **others)


class CovidCxr(CohortBuilder):
    """Builder of `covid_cxr`."""

    name = "covid_cxr"

    def __init__(self, **others: Any) -> None:
        super().__init__(cohort=load("covid_cxr"), **others)


class Ham10000Small(CohortBuilder):
    """Builder of `ham10000_small`."""

    name = "ham10000_small"

    def __init__(self, **others: Any) -> None:
        super().__init__(cohort=load("ham10000_small"), **others)
