"""Cohorts from data sets of TensorFlow Datasets that others made, read at random from array_record, without TensorFlow.

A cohort that fusion_jax wrote itself is opened by `fusion_jax.data.shards.open_shards`, which brings back everything.
"""

import contextlib
import dataclasses
import functools
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusion_jax.data.cohort import Cohort, Columns, Lazy, Role, Source
from fusion_jax.data.image import Image, UnreadableFile

__all__ = ["open_builder"]


def open_builder(
    folder: str | os.PathLike[str],
    *,
    split: str,
    sources: Mapping[str, str] | Sequence[str],
    roles: Mapping[str, Role],
    case_id: str | None = None,
    patient_id: str | None = None,
    site: str | None = None,
    units: Mapping[str, str] | None = None,
) -> Cohort:
    """Cohort of one split of a prepared TensorFlow Datasets builder in array_record format.

    Scalar features are read once and become the table; images are read one record at a time when they are asked for.

    Args:
      folder: of the prepared data, `builder.data_dir`.
      split: such as "train".
      sources: features with images, `(h, w)`, `(h, w, c)`, `(d, h, w, c)`, or vectors, `(f,)`; or a mapping from the
        name of a source to its feature. A source `clinical` of the columns with the role `input` is added if there are
        any.
      roles: scalar feature to role; the classes of a `ClassLabel` are the levels of a label. Features without a role
        are `never`.
      case_id, patient_id, site: scalar features; by default cases are numbered and every case is a patient.
      units: column or source to unit.

    Raises:
      UnreadableFile: the folder holds no prepared data in array_record format.
      ValueError: a feature that is not there, or of a shape that is no image, vector or scalar.

    Example:
      >>> cohort = open_builder("chest/1.0.0", split="train", sources=["image"], roles={"label": "label"},
      ...                       patient_id="patient")  # doctest: +SKIP
    """
    names = dict(sources) if isinstance(sources, Mapping) else {name: name for name in sources}
    builder, features = _open(os.fspath(folder))
    if split not in builder.info.splits:
        raise ValueError(f"{folder}: no split {split!r}; it has {', '.join(builder.info.splits)}.")
    scalars = [name for name, feature in features.items() if feature.shape == ()]
    for name in names.values():
        if name not in features or len(features[name].shape) not in (1, 2, 3, 4):
            raise ValueError(f"{folder}: {name!r} is no image or vector; the features are {_described(features)}.")
    for name in (*roles, *(feature for feature in (case_id, patient_id, site) if feature is not None)):
        if name not in scalars:
            raise ValueError(f"{folder}: {name!r} is no scalar; the features are {_described(features)}.")
    table = _table(os.fspath(folder), split, scalars, features)
    ids = [f"case_{row}" for row in range(len(table))] if case_id is None else table[case_id].map(str).tolist()
    identity = f"{builder.info.full_name} {split} {builder.info.splits[split].shard_lengths}"
    made: dict[str, Source] = {}
    for source, name in names.items():
        kind = "array" if len(features[name].shape) == 1 else "image"
        reader = _FeatureReader(os.fspath(folder), split, name, (units or {}).get(source, ""))
        made[source] = Lazy(reader, np.arange(len(table)), kind, f"{identity} {name}")
    kept: dict[str, Role] = {name: role for name, role in roles.items() if name != case_id}
    inputs = tuple(name for name in table.columns if kept.get(name) == "input")
    if inputs:
        made["clinical"] = Columns(inputs, len(table))
    return Cohort.from_arrays(
        made,
        table=table if case_id is None else table.drop(columns=case_id),
        roles=kept,
        case_id=ids,
        patient_id=None if patient_id is None else table[patient_id].map(str),
        site=None if site is None else table[site].map(str),
        name=builder.info.name,
        units=dict(units or {}),
        levels={
            name: tuple(features[name].names)
            for name, role in kept.items()
            if role == "label" and hasattr(features[name], "names") and features[name].names
        },
    )


@dataclasses.dataclass(frozen=True)
class _FeatureReader:
    """One feature of one record; goes to loader workers by pickle."""

    folder: str
    split: str
    feature: str
    unit: str

    def __call__(self, row: int) -> Image:
        try:
            values = np.asarray(_records(self.folder, self.split, (self.feature,))[row][self.feature])
        except Exception as error:  # whatever a damaged record makes of the parser
            found = f"record {row} of split {self.split} cannot be read ({type(error).__name__}: {error})"
            raise UnreadableFile(self.folder, found, "Prepare the data set again.") from error
        return Image(values[..., None] if values.ndim == 2 else values, unit=self.unit)


def _open(folder: str) -> tuple[Any, Any]:
    import tensorflow_datasets as tfds

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the library announces itself with print
            builder: Any = tfds.builder_from_directory(folder)
    except Exception as error:  # no folder, no description, or one of another version
        found = f"holds no prepared data set ({type(error).__name__}: {error})"
        raise UnreadableFile(folder, found, "Give `builder.data_dir` after `download_and_prepare`.") from error
    if builder.info.file_format.value != "array_record":
        found = f"is in {builder.info.file_format.value} format, which has no random access"
        raise UnreadableFile(folder, found, 'Prepare it with file_format="array_record".')
    return builder, dict(builder.info.features.items())


class _Records:
    """Records of a split, of which only the wanted features are decoded."""

    def __init__(self, folder: str, split: str, wanted: Sequence[str]) -> None:
        import tensorflow_datasets as tfds

        core: Any = tfds.core
        builder, features = _open(folder)
        self._data = builder.as_data_source(split, deserialize_method=core.decode.DeserializeMethod.RAW_BYTES)
        self._features = tfds.features.FeaturesDict({name: features[name] for name in wanted})

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, row: int) -> dict[str, Any]:
        record: Any = self._features.deserialize_example_np(self._data[row])
        return record


@functools.lru_cache(maxsize=16)
def _opened(folder: str, split: str, wanted: tuple[str, ...], process: int) -> _Records:
    del process  # a part of the key: an open file must not be shared across a fork
    return _Records(folder, split, wanted)


def _records(folder: str, split: str, wanted: tuple[str, ...]) -> _Records:
    return _opened(folder, split, wanted, os.getpid())


def _table(folder: str, split: str, scalars: Sequence[str], features: Mapping[str, Any]) -> Any:
    import pandas as pd

    records = _records(folder, split, tuple(scalars))
    rows = range(len(records))
    columns: dict[str, list[Any]] = {name: [] for name in scalars}
    for row in rows if scalars else ():
        record = records[row]
        for name in scalars:
            columns[name].append(_cell(record[name], features[name]))
    return pd.DataFrame(columns, index=rows)


def _cell(value: Any, feature: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if hasattr(feature, "int2str") and getattr(feature, "names", None):
        # TensorFlow Datasets writes a class that is not known as -1.
        return feature.int2str(int(value)) if int(value) >= 0 else None
    return value.item() if hasattr(value, "item") else value


def _described(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {tuple(feature.shape)}" for name, feature in features.items())
