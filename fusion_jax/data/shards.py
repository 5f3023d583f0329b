"""Cohorts as array_record shards: one record a case, random access, read by any program that reads TensorFlow Datasets.

A folder of shards holds the records (`*.array_record-*`, with `features.json` and `dataset_info.json` beside), the
table (`table.parquet`), what there is of every case in small (`rows.npz`: ids, presence, boxes) and the roles, units,
classes and sizes of all files (`cohort.json`). The last three let a cohort of any size open without reading a record.
"""

import dataclasses
import functools
import hashlib
import io
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from fusion_jax.data.cohort import Boxes, Cohort, Columns, Lazy
from fusion_jax.data.definition import Flow
from fusion_jax.data.image import Image, UnreadableFile
from fusion_jax.records import atomic_path, write_json

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["ShardReader", "cohort_builder", "open_shards", "write_shards"]

FORMAT = 1
SPLIT = "cases"
# The library that writes a shard holds its cases in memory until the shard is whole.
SHARD_BYTES = 128 << 20
ROLES_IN_RECORDS = ("input", "time", "event", "group")


def write_shards(
    cohort: Cohort, folder: str | os.PathLike[str], *, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Write a cohort as array_record shards through a TensorFlow Datasets builder; TensorFlow itself is not needed.

    `open_shards` gives the same cohort back: ids, table, images with spacing and affine, boxes, absent sources, order,
    and the dtype of every one of them. Columns with the role `never` are there too, in `table.parquet` alone: drop what
    is personal before you hand shards on. The folder appears when everything is written; a conversion that is killed
    leaves a hidden folder beside it that does not open.

    Args:
      cohort: any cohort; every present source of every case is read once.
      folder: to make; must not exist or be empty.
      progress: called with the number of cases written and the number of all cases.

    Returns:
      The folder.

    Raises:
      FileExistsError: the folder has contents.
      ValueError: a source holds arrays of different rank, or a column holds what cannot be read back as it is.

    Example:
      >>> import tempfile
      >>> cohort = Cohort.from_arrays({"image": np.zeros((3, 4, 4, 1), np.uint8)}, label=[0, 1, 1])
      >>> again = open_shards(write_shards(cohort, Path(tempfile.mkdtemp()) / "shards"))
      >>> again.label.tolist(), again.sources["image"][2].shape
      ([0, 1, 1], (4, 4, 1))
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists; expected a new folder. Name another one, or delete it first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    dtypes: dict[str, np.dtype] = {}
    try:
        while True:
            try:
                builder = cohort_builder()(cohort=cohort, dtypes=dtypes, progress=progress, data_dir=temporary)
                with redirect_stdout(io.StringIO()):  # the builder announces itself with print
                    builder.download_and_prepare(file_format="array_record")
                break
            except _WiderDtype as wider:
                # Records have one dtype a source; a source of 8-bit and 16-bit images starts again with the wider.
                dtypes = {**dtypes, wider.source: wider.dtype}
                shutil.rmtree(temporary)
        Path(builder.data_path).replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def open_shards(folder: str | os.PathLike[str]) -> Cohort:
    """The cohort that `write_shards` or a builder of `fusion_jax.data.collections` wrote; reads no record.

    Args:
      folder: of the shards.

    Returns:
      The cohort; images are read one record at a time when asked for.

    Raises:
      UnreadableFile: the folder holds no cohort, a part is missing, damaged or of another length, or it was written by
        another version of this format.
    """
    folder = Path(folder)
    about = folder / "cohort.json"
    if not about.is_file():
        raise UnreadableFile(
            folder, "has no cohort.json", "Give a folder that `write_shards` finished; a killed conversion has none."
        )
    try:
        content = json.loads(about.read_bytes())
        if content["format"] != FORMAT:
            raise UnreadableFile(
                about, f"has format {content['format']}, expected {FORMAT}", "Convert the cohort again."
            )
        if content.pop("sha256") != _digest(content):
            raise UnreadableFile(about, "does not have the SHA-256 it states", "Copy or convert the cohort again.")
        _check_sizes(folder, content["files"])
        table = _read_table(_checked_bytes(folder / "table.parquet", content), content["table"])
        with np.load(io.BytesIO(_checked_bytes(folder / "rows.npz", content)), allow_pickle=False) as file:
            rows = {name: file[name] for name in file.files}
        sources = {
            name: Columns(tuple(source["columns"]), len(table))
            if source["kind"] == "table"
            else Lazy(
                ShardReader(os.fspath(folder.resolve()), name),
                np.arange(len(table)),
                source["kind"],
                source["fingerprint"],
            )
            for name, source in content["sources"].items()
        }
        return Cohort(
            name=content["name"],
            table=table,
            patient_id=rows["patient_id"].astype(content["id_dtypes"]["patient_id"]),
            site=rows["site"].astype(content["id_dtypes"]["site"]) if "site" in rows else None,
            roles=content["roles"],
            sources=sources,
            present=dict(zip(sources, rows["present"], strict=True)),
            units=content["units"],
            levels={column: tuple(levels) for column, levels in content["levels"].items()},
            boxes=_unpack_boxes(rows) if "box_count" in rows else None,
            box_classes=tuple(content["box_classes"]),
            boxes_of=content["boxes_of"],
            flow=None if content["flow"] is None else Flow.from_dict(content["flow"]),
        )
    except UnreadableFile:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise UnreadableFile(
            folder, f"is no whole cohort ({type(error).__name__}: {error})", "Copy or convert it again."
        ) from error


@dataclasses.dataclass(frozen=True)
class ShardReader:
    """Reads one source of one case from a folder of shards; goes to loader workers by pickle.

    Attributes:
      folder: of the shards.
      source: name of the source.
    """

    folder: str
    source: str

    def __call__(self, row: int) -> Image:
        """The image of a row of the whole cohort."""
        return _records(self.folder).image(self.source, row)


@functools.cache
def cohort_builder() -> type:
    """The TensorFlow Datasets builder that writes a cohort; a function, because the import takes half a second.

    Its class takes `cohort` and the arguments of every builder; a subclass with a `name` gives the cohort itself
    (`fusion_jax.data.collections.builders`).

    Example:
      >>> cohort_builder().__name__
      'CohortBuilder'
    """
    import tensorflow_datasets as tfds

    # Not a GeneratorBasedBuilder: that one shuffles, and above 1 GB it spills into files that it opens through
    # TensorFlow.
    class CohortBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
        """Writes the cases of a cohort in their order."""

        name = "cohort"
        VERSION = tfds.core.Version("1.0.0")

        def __init__(
            self,
            *,
            cohort: Cohort,
            dtypes: Mapping[str, np.dtype] | None = None,
            progress: Callable[[int, int], None] | None = None,
            **others: Any,
        ) -> None:
            self.cohort = cohort
            self.progress = progress
            self.layout = _layout(cohort, dtypes or {})
            super().__init__(file_format="array_record", **others)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"Cases of the cohort {self.cohort.name}, written by fusion_jax.",
                features=_features(self.cohort, self.layout),
                disable_shuffling=True,
            )

        def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator[Any]]]]:
            del dl_manager
            n, size = len(self.cohort), self.layout.cases_per_shard
            return {SPLIT: [functools.partial(self._cases, i, min(i + size, n)) for i in range(0, n, size)]}

        def _cases(self, begin: int, end: int) -> Iterator[tuple[int, dict[str, Any]]]:
            for row in range(begin, end):
                yield row, _example(self.cohort, self.layout, row)
                if self.progress is not None:
                    self.progress(row + 1, len(self.cohort))

        def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
            super()._download_and_prepare(dl_manager, download_config)
            _write_beside(self.cohort, Path(self.data_path))

    return CohortBuilder


# Records


class _WiderDtype(Exception):
    """No error: asks for another round with a wider dtype."""

    def __init__(self, source: str, dtype: np.dtype) -> None:
        super().__init__(source, dtype)
        self.source, self.dtype = source, dtype


@dataclasses.dataclass(frozen=True)
class _Layout:
    """What all records have in common."""

    dtypes: dict[str, np.dtype]
    ranks: dict[str, int]
    codes: dict[str, tuple[np.ndarray, tuple[str, ...]]]
    columns: dict[str, Any]
    cases_per_shard: int


def _layout(cohort: Cohort, wider: Mapping[str, np.dtype]) -> _Layout:
    dtypes, ranks, size = {}, {}, 0
    for name, source in cohort.sources.items():
        present = np.flatnonzero(cohort.present[name])
        if source.kind == "table":
            continue
        # A source that no case has keeps its place; nothing is ever stored in it.
        first = cohort.image(name, int(present[0])).values if len(present) else np.zeros(0, np.float32)
        dtypes[name] = wider.get(name, first.dtype.newbyteorder("="))
        ranks[name] = first.ndim
        size += first.nbytes
    codes = {column: cohort.codes(column) for column in cohort.columns("label")}
    columns = {
        column: cohort.table[column]
        for column in cohort.table.columns
        if cohort.role(column) in ROLES_IN_RECORDS and _is_number_or_text(cohort.table[column])
    }
    return _Layout(dtypes, ranks, codes, columns, int(np.clip(SHARD_BYTES // max(size, 1), 1, 4096)))


def _is_number_or_text(column: Any) -> bool:
    import pandas as pd

    return bool(
        pd.api.types.is_numeric_dtype(column)
        or pd.api.types.infer_dtype(column, skipna=True) in ("string", "categorical", "empty")
    )


def _features(cohort: Cohort, layout: _Layout) -> Any:
    import pandas as pd
    import tensorflow_datasets as tfds

    # Raw bytes inside the record: array_record packs each record with Zstandard anyway, and zlib inside it made files
    # of the same size nine times as slowly.
    def tensor(shape: tuple[int | None, ...], dtype: Any) -> Any:
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")

    features: dict[str, Any] = {
        "case_id": tfds.features.Text(),
        "patient_id": tfds.features.Text(),
        "site": tfds.features.Text(),
    }
    for name, dtype in layout.dtypes.items():
        features[_key("source", name)] = {
            "present": np.bool_,
            "values": tensor((None,) * layout.ranks[name], dtype),
            "dtype": tfds.features.Text(),
            "spacing": tensor((None,), np.float64),
            "affine": tensor((None, 4), np.float64),
            "unit": tfds.features.Text(),
        }
    for column, (_, levels) in layout.codes.items():
        if levels:
            features[_key("label", column)] = tfds.features.ClassLabel(names=list(levels))
    for column, cells in layout.columns.items():
        numeric = pd.api.types.is_numeric_dtype(cells)
        features[_key("column", column)] = tensor((), np.float64) if numeric else tfds.features.Text()
    if cohort.boxes is not None:
        features["boxes"] = {"corners": tensor((None, 4), np.float64), "classes": tensor((None,), np.int64)}
    return tfds.features.FeaturesDict(features)


def _example(cohort: Cohort, layout: _Layout, row: int) -> dict[str, Any]:
    import pandas as pd

    example: dict[str, Any] = {
        "case_id": str(cohort.table.index[row]),
        "patient_id": str(cohort.patient_id[row]),
        "site": "" if cohort.site is None else str(cohort.site[row]),
    }
    for name, dtype in layout.dtypes.items():
        rank = layout.ranks[name]
        there = bool(cohort.present[name][row])
        image = cohort.image(name, row) if there else Image(np.zeros((*(1,) * (rank - 1), rank), dtype))
        if image.values.ndim != rank:
            raise ValueError(
                f"{cohort.name}: source {name!r} has {rank} axes in its first case and {image.values.ndim} in case "
                f"{cohort.table.index[row]}; expected the same. Make it two sources."
            )
        stored = image.values
        if not stored.size:
            raise ValueError(
                f"{cohort.name}: source {name!r} of case {cohort.table.index[row]} has shape {stored.shape}, without a "
                "single value; expected an image or an absent source. Mark it absent in `present`."
            )
        if rank > 1 and stored.size * dtype.itemsize < rank:
            # TensorFlow Datasets 4.9 cuts the shape of an array to as many axes as it has bytes.
            raise _WiderDtype(name, np.result_type(dtype, np.uint32))
        if stored.dtype != dtype:
            wider = np.result_type(stored.dtype, dtype)
            if wider != dtype:
                raise _WiderDtype(name, wider)
            stored = stored.astype(dtype)
            # int64 beside float32 becomes float64, which large integers do not survive.
            if not np.array_equal(stored.astype(image.values.dtype), image.values, equal_nan=dtype.kind in "fc"):
                raise ValueError(
                    f"{cohort.name}: source {name!r} mixes dtypes; {dtype}, which would hold all others, changes the "
                    f"{image.values.dtype} of case {cohort.table.index[row]}. Make it two sources."
                )
        example[_key("source", name)] = {
            "present": there,
            "values": stored,
            "dtype": image.values.dtype.str,
            "spacing": np.array(image.spacing or (), np.float64),
            "affine": np.zeros((0, 4)) if image.affine is None else np.asarray(image.affine, np.float64),
            "unit": image.unit,
        }
    for column, (codes, levels) in layout.codes.items():
        if levels:
            example[_key("label", column)] = int(codes[row])
    for column, cells in layout.columns.items():
        cell, missing = cells.iloc[row], bool(pd.isna(cells.iloc[row]))
        if pd.api.types.is_numeric_dtype(cells):
            example[_key("column", column)] = np.array(np.nan if missing else cell, np.float64)
        else:
            example[_key("column", column)] = "" if missing else str(cell)
    if cohort.boxes is not None:
        boxes = cohort.boxes[row]
        example["boxes"] = {
            "corners": np.asarray(boxes.corners, np.float64).reshape(-1, 4),
            "classes": np.asarray(boxes.classes, np.int64),
        }
    return example


def _key(kind: str, name: str) -> str:
    """Name of a feature; a slash would nest it."""
    return f"{kind}.{quote(name, safe=' ')}"


class _Records:
    """Records of a folder, the last one kept, since the sources of a case are read one after the other."""

    def __init__(self, folder: str) -> None:
        import tensorflow_datasets as tfds

        core: Any = tfds.core
        with redirect_stdout(io.StringIO()):
            builder: Any = tfds.builder_from_directory(folder)
            self._data = builder.as_data_source(SPLIT, deserialize_method=core.decode.DeserializeMethod.RAW_BYTES)
        self._folder = folder
        self._features = builder.info.features
        self._parts: dict[str, Any] = {}
        self._last: tuple[int, bytes] = (-1, b"")

    def _part(self, key: str) -> Any:
        """Features of one source alone: the others stay bytes."""
        import tensorflow_datasets as tfds

        if key not in self._parts:
            self._parts[key] = tfds.features.FeaturesDict({key: self._features[key]})
        return self._parts[key]

    def image(self, source: str, row: int) -> Image:
        key = _key("source", source)
        try:
            last, record = self._last
            if last != row:
                record = self._data[row]
                self._last = (row, record)
            part = self._part(key).deserialize_example_np(record)[key]
            values = part["values"].astype(np.dtype(_text(part["dtype"])))
        except Exception as error:  # whatever a damaged record makes of the parser
            raise UnreadableFile(
                self._folder, f"record {row} cannot be read ({error})", "Copy or convert the cohort again."
            ) from error
        return Image(
            values=values,
            spacing=tuple(part["spacing"].tolist()) or None,
            affine=part["affine"].copy() if len(part["affine"]) else None,
            unit=_text(part["unit"]),
        )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


_lock = threading.Lock()
_opened: dict[str, tuple[tuple[int, int], _Records]] = {}


def _records(folder: str) -> _Records:
    """Open records of a folder: one set a process, for a file must not be shared across a fork, and made anew."""
    try:
        made = (Path(folder) / "cohort.json").stat().st_mtime_ns
    except OSError as error:
        raise UnreadableFile(folder, f"is gone ({error})", "Restore the folder or open another.") from error
    with _lock:
        state, records = _opened.get(folder, (None, None))
        if records is None or state != (os.getpid(), made):
            try:
                records = _Records(folder)
            except Exception as error:  # whatever a damaged description makes of the library
                raise UnreadableFile(folder, f"does not open ({error})", "Copy or convert the cohort again.") from error
            _opened[folder] = ((os.getpid(), made), records)
        return records


# Beside the records


def _write_beside(cohort: Cohort, folder: Path) -> None:
    table = _write_table(cohort.table, folder / "table.parquet", cohort.name)
    rows: dict[str, np.ndarray] = {
        "patient_id": cohort.patient_id.astype(np.str_),
        "present": np.array([cohort.present[name] for name in cohort.sources]),
    }
    if cohort.site is not None:
        rows["site"] = cohort.site.astype(np.str_)
    if cohort.boxes is not None:
        rows |= _pack_boxes(cohort.boxes)
    with atomic_path(folder / "rows.npz") as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **rows)
    content = {
        "format": FORMAT,
        "name": cohort.name,
        "n": len(cohort),
        "roles": dict(cohort.roles),
        "units": dict(cohort.units),
        "levels": {column: list(levels) for column, levels in cohort.levels.items()},
        "sources": {
            name: {
                "kind": source.kind,
                "fingerprint": source.fingerprint(),
                "columns": list(source.names) if isinstance(source, Columns) else [],
            }
            for name, source in cohort.sources.items()
        },
        "box_classes": list(cohort.box_classes),
        "boxes_of": cohort.boxes_of,
        "id_dtypes": {
            "patient_id": cohort.patient_id.dtype.str,
            "site": "" if cohort.site is None else cohort.site.dtype.str,
        },
        "flow": None if cohort.flow is None else cohort.flow.to_dict(),
        "table": table,
        "fingerprint": cohort.fingerprint,
        "checksums": {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("table.parquet", "rows.npz")
        },
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()},
    }
    write_json(folder / "cohort.json", content | {"sha256": _digest(content)})


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _checked_bytes(file: Path, content: Mapping[str, Any]) -> bytes:
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != content["checksums"][file.name]:
        raise UnreadableFile(file, "does not have the SHA-256 of its cohort.json", "Copy or convert the cohort again.")
    return data


def _check_sizes(folder: Path, files: Mapping[str, int]) -> None:
    for name, size in files.items():
        file = folder / name
        if not file.is_file():
            raise UnreadableFile(file, "is missing", "Copy or convert the cohort again.")
        if file.stat().st_size != size:
            raise UnreadableFile(
                file, f"has {file.stat().st_size} bytes, expected {size}", "Copy or convert the cohort again."
            )


def _pack_boxes(boxes: Sequence[Boxes]) -> dict[str, np.ndarray]:
    return {
        "box_count": np.array([len(case.corners) for case in boxes]),
        "box_corners": np.concatenate([np.asarray(case.corners, np.float64).reshape(-1, 4) for case in boxes]),
        "box_classes": np.concatenate([np.asarray(case.classes, np.int64) for case in boxes]),
        "box_corner_dtype": np.array([case.corners.dtype.str for case in boxes]),
        "box_class_dtype": np.array([case.classes.dtype.str for case in boxes]),
    }


def _unpack_boxes(rows: Mapping[str, np.ndarray]) -> list[Boxes]:
    ends = np.cumsum(rows["box_count"])
    return [
        Boxes(
            rows["box_corners"][end - count : end].astype(corner_dtype),
            rows["box_classes"][end - count : end].astype(class_dtype),
        )
        for end, count, corner_dtype, class_dtype in zip(
            ends, rows["box_count"], rows["box_corner_dtype"], rows["box_class_dtype"], strict=True
        )
    ]


def _write_table(table: "pandas.DataFrame", path: Path, name: str) -> dict[str, Any]:
    """Write the table and make sure that it reads back as it is; returns what reading needs to know."""
    import pandas as pd

    stored: Any = table.copy()
    about: dict[str, Any] = {"json": [], "dtypes": {}, "index": str(table.index.dtype)}
    for column in table.columns:
        cells: Any = table[column]
        if cells.dtype == object:
            # Parquet has one type a column: text, numbers and both kinds of missing keep theirs as JSON.
            about["json"].append(column)
            stored[column] = [_cell_to_json(cell, f"{name}: column {column!r}") for cell in cells]
        elif not isinstance(cells.dtype, pd.CategoricalDtype):
            about["dtypes"][column] = str(cells.dtype)
    with atomic_path(path) as temporary:
        stored.to_parquet(temporary)
    try:
        pd.testing.assert_frame_equal(
            _read_table(path.read_bytes(), about), table, check_column_type=False, check_exact=True
        )
    except AssertionError as error:
        raise ValueError(
            f"{name}: the table cannot be written as it is ({' '.join(str(error).split())}); expected columns of "
            "numbers, text, dates or categories. Convert the column first."
        ) from error
    return about


def _read_table(data: bytes, about: Mapping[str, Any]) -> "pandas.DataFrame":
    import pandas as pd

    table: Any = pd.read_parquet(io.BytesIO(data))
    for column, dtype in about["dtypes"].items():
        if str(table[column].dtype) != dtype:
            table[column] = table[column].astype(dtype)
    for column in about["json"]:
        cells = [_cell_from_json(cell) for cell in table[column]]
        table[column] = pd.Series(cells, index=table.index, dtype=object)
    table.index = table.index.astype(about["index"])
    return table


def _cell_to_json(cell: Any, where: str) -> str:
    import pandas as pd

    if cell is pd.NA:
        return '{"missing": "NA"}'
    if isinstance(cell, np.generic):
        return json.dumps({"numpy": cell.dtype.str, "value": cell.item()})
    if cell is None or isinstance(cell, str | bool | int | float):
        return json.dumps(cell)
    raise ValueError(
        f"{where} holds {cell!r} of type {type(cell).__name__}; expected text, a number or nothing. Convert the column."
    )


def _cell_from_json(text: str) -> Any:
    import pandas as pd

    cell = json.loads(text)
    if isinstance(cell, dict):
        return pd.NA if "missing" in cell else np.dtype(cell["numpy"]).type(cell["value"])
    return cell
