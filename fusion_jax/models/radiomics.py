"""Hand-crafted features of what lies inside masks, as the IBSI defines them; mirp computes them (extra `radiomics`).

The result is a table by `case_id`, which classical recipes read in place of measurements (their argument `table`).
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import random
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import numpy as np
from jaxtyping import Bool, Float

from fusion_jax.data.address import open_address
from fusion_jax.data.cohort import Cohort
from fusion_jax.data.image import Image
from fusion_jax.models.measurements import measurable
from fusion_jax.records import run_record, write_csv, write_json
from fusion_jax.records.arguments import as_json, close_to, from_json
from fusion_jax.training.executors import ExecutorFactory, in_process
from fusion_jax.wording import counted, listed

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["FAMILIES", "Family", "RadiomicSettings", "radiomic_features"]

Family = Literal[
    "statistics", "morphology", "intensity-histogram", "glcm", "glrlm", "glszm", "gldzm", "ngtdm", "ngldm", "spatial"
]  # fmt: skip

FAMILIES: tuple[Family, ...] = (
    "statistics", "morphology", "intensity-histogram", "glcm", "glrlm", "glszm", "gldzm", "ngtdm", "ngldm"
)  # fmt: skip
"""Those that are computed unless others are named: statistics of the values, shape of the mask, histogram of the grey
levels, and textures: co-occurrence, runs, size zones, distance zones, differences to the neighbourhood, dependence on
the neighbourhood. Beside these there is "spatial": shift of the centre of mass, integrated intensity, Moran's I and
Geary's C, which the IBSI counts as morphology. The last two take mirp ten times as long as all others together."""

MIRP: Mapping[str, str] = {
    "statistics": "statistical",
    "morphology": "morphological",
    "intensity-histogram": "intensity_histogram",
    "glcm": "cm",
    "glrlm": "rlm",
    "glszm": "szm",
    "gldzm": "dzm",
    "ngtdm": "ngtdm",
    "ngldm": "ngldm",
    "spatial": "morphological",
}
"""Family to mirp's word for it."""

PREFIXES = ("stat_", "morph_", "ih_", "cm_", "rlm_", "szm_", "dzm_", "ngt_", "ngl_")
"""Columns of mirp that are features; the others say where the image came from."""

SPATIAL = ("morph_com", "morph_integ_int", "morph_moran_i", "morph_geary_c")
"""Features that mirp computes with the shape, and that look at the values inside it."""

MODALITIES = {"HU": "ct", "SUV": "pet"}
"""Unit to what mirp takes the image for: it rounds HU, and lets a fixed bin size begin at -1000 HU or at SUV 0."""

CASES, FORMAT = ".cases", 1

INSTALL = 'Radiomic features need mirp: pip install "fusion-jax[radiomics]".'

logger = logging.getLogger("fusion_jax.models.radiomics")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RadiomicSettings:
    """How an image becomes grey levels, and what is computed of them.

    Attributes:
      spacing: side of the cubes (of the squares, slice by slice) that image and mask are resampled to, in mm; None
        leaves the grid. Textures of different spacings cannot be compared.
      bins: grey levels between least and largest value inside the mask, for images without a bin width.
      bin_width: image to the width of its grey levels, in its unit. Levels then mean the same in every case, which
        needs a scale that does: HU and SUV have one, most MRI has none.
      intensity_range: image to the least and largest value that counts as inside; with a bin width the first grey level
        begins at the least one, without at -1000 HU or SUV 0.
      families: of features.
      by_slice: compute slice by slice and take the mean, for slices far thicker than their pixels; else in 3-D.

    Example:
      >>> RadiomicSettings(spacing=2.0, bin_width={"ct": 25.0}).bins
      32
    """

    spacing: float | None = None
    bins: int = 32
    bin_width: Mapping[str, float] = dataclasses.field(default_factory=dict)
    intensity_range: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    families: tuple[Family, ...] = FAMILIES
    by_slice: bool = False

    def __post_init__(self) -> None:
        if self.spacing is not None and not self.spacing > 0:
            raise ValueError(f"spacing is {self.spacing}; expected millimetres, or None for the grid as it is.")
        if self.bins < 2:
            raise ValueError(f"bins is {self.bins}; expected at least 2 grey levels.")
        for image, width in self.bin_width.items():
            if not width > 0:
                raise ValueError(f"bin_width of {image!r} is {width}; expected a positive width in the image's unit.")
        for image, limits in self.intensity_range.items():
            if len(limits) != 2 or not limits[0] < limits[1]:
                raise ValueError(f"intensity_range of {image!r} is {tuple(limits)}; expected (least, largest).")
        if not self.families:
            raise ValueError(f"families is empty; expected some of {', '.join(MIRP)}.")
        for family in self.families:
            if family not in MIRP:
                raise ValueError(f"families: no {family!r}; {close_to(family, MIRP)}")

    def to_json(self) -> dict[str, Any]:
        """As JSON holds them."""
        return {field.name: as_json(getattr(self, field.name)) for field in dataclasses.fields(self)}


def radiomic_features(
    cohort: Cohort,
    path: str | Path,
    settings: RadiomicSettings = RadiomicSettings(),
    *,
    images: Sequence[str] = (),
    address: Mapping[str, Any] | None = None,
    executor_factory: ExecutorFactory | None = None,
    report: Callable[[int, int], None] | None = None,
) -> "pandas.DataFrame":
    """The table of radiomic features at `path`, computed only as far as it is not there yet.

    A table that is there is read. One that this function wrote has a record beside it (the same name, `.json`): other
    settings are refused, and for another cohort it is made anew. A table without a record is taken as it is, whoever
    made it, if it has every case. Finished cases are kept in the folder `<name>.cases` and recognised by settings,
    image and mask, so that an interrupted call goes on where it stopped.

    Columns are `<image>:<feature>` and, for shape, `<mask>:<feature>`, with mirp's names of the features: IBSI tag, way
    of merging, discretisation. With several masks, `<image> in <mask>:<feature>`; of images with several channels,
    `<image>[0]:<feature>` and so on.

    Args:
      cohort: with images and, on the grid of each, a mask; whatever is not 0 is inside.
      path: of the CSV.
      settings: of the features.
      images: to compute them on; all that are on the grid of a mask by default.
      address: of the cohort, see `fusion_jax.data.open_address`; with it workers open the cohort by themselves.
      executor_factory: where cases are worked on, from `fusion_jax.training.executors`; here, one after the other, by
        default. All others need the address.
      report: told how many of how many cases are done.

    Returns:
      The features, one row a case in the order of the cohort, indexed by `case_id`; NaN where a case lacks image or
      mask, and where a feature is not defined, such as the skewness of equal values.

    Raises:
      ImportError: something is to be computed and mirp is not installed.
      ValueError: a cohort without masks; a table of other settings, or without some case; cases that failed, named in
        the message, after all others were computed and kept.
      RuntimeError: a worker died.

    Example:
      >>> from fusion_jax.data.collections import soft_tissue_sarcoma_cohort
      >>> cohort = soft_tissue_sarcoma_cohort()
      >>> table = radiomic_features(cohort, "sarcoma.csv", report=print)  # doctest: +SKIP

    References:
      Zwanenburg et al. 2020, doi:10.1148/radiol.2020191145 (IBSI); Zwanenburg et al. 2024, doi:10.21105/joss.06413
      (mirp). specs/mm_nas.md, section 8; specs/hcc_fusion.md, section 6.1.
    """
    path = Path(path)
    pairs = _pairs(cohort, images)
    measured = {image for on in pairs.values() for image in on}
    for name in (*settings.bin_width, *settings.intensity_range):
        if name not in measured:
            raise ValueError(f"{cohort.name}: the settings name an image {name!r}; {close_to(name, sorted(measured))}")
    record = {"format": FORMAT, "settings": settings.to_json(), "pairs": as_json(pairs)}
    record |= {"cohort": _fingerprint(cohort, pairs)}
    found = _existing(path, cohort, record)
    if found is not None:
        if report is not None:
            report(len(cohort), len(cohort))
        return found
    _extractor()
    if executor_factory is not None and address is None:
        raise ValueError(
            f"{cohort.name}: other processes get no arrays; give the `address` of the cohort, with which they open it "
            "by themselves, or leave the executor out."
        )
    folder = path.with_suffix(CASES)
    config = json.dumps({"cohort": address, "settings": settings.to_json(), "pairs": as_json(pairs)})
    work = functools.partial(_remote, config) if executor_factory is not None else _Here(cohort, settings, pairs)
    failed = _every_case((executor_factory or in_process)(), work, cohort.case_id, folder, report)
    if failed:
        case, message = next(iter(failed.items()))
        raise ValueError(
            f"{cohort.name}: no radiomic features of {len(failed)} of {counted(len(cohort), 'case')}; case {case}: "
            f"{message} (all of them: {listed(failed, 20)}). The others are kept in {folder}: take these cases out of "
            "the cohort, or mark their mask as absent, and call again."
        )
    rows = [json.loads(_kept(folder, case).read_text(encoding="utf-8"))["features"] for case in cohort.case_id]
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        raise ValueError(f"{cohort.name}: no case has both a mask and an image on its grid.")
    write_csv(path, {"case_id": list(cohort.case_id)} | {name: [row.get(name) for row in rows] for name in names})
    write_json(path.with_suffix(".json"), {**record, "mirp": _version(), "run": run_record()})
    return _read(path)


class _Here:
    """Works on cases of a cohort in hand."""

    def __init__(self, cohort: Cohort, settings: RadiomicSettings, pairs: Mapping[str, Sequence[str]]) -> None:
        self.cohort, self.settings, self.pairs = cohort, settings, pairs
        self.rows = {case: row for row, case in enumerate(cohort.case_id)}

    def __call__(self, case: str, folder: str) -> str:
        try:
            _keep(self.cohort, self.rows[case], self.settings, self.pairs, Path(folder))
        except Exception as error:  # one case must not stop the others
            logger.debug("case %s", case, exc_info=True)
            return " ".join(f"{error if isinstance(error, ValueError) else repr(error)}".split())
        return ""


def _remote(config: str, case: str, folder: str) -> str:
    """Works on a case in another process, which opens the cohort once; says what went wrong."""
    return _opened(config)(case, folder)


@functools.lru_cache(maxsize=2)
def _opened(config: str) -> _Here:
    content = json.loads(config)
    settings = from_json(RadiomicSettings, content["settings"], where="settings of radiomic features")
    return _Here(open_address(content["cohort"]), settings, content["pairs"])


def _every_case(
    executor: Executor,
    work: Callable[[str, str], str],
    cases: Sequence[str],
    folder: Path,
    report: Callable[[int, int], None] | None,
) -> dict[str, str]:
    """What went wrong, by case."""
    failed: dict[str, str] = {}
    done = 0

    def take(future: Future, case: str) -> None:
        nonlocal done
        message = future.result()
        if message:
            failed[case] = message
        done += 1
        if report is not None:
            report(done, len(cases))

    futures: dict[Future, str] = {}
    try:
        for case in cases:
            future = executor.submit(work, case, str(folder))
            if future.done():
                take(future, case)
            else:
                futures[future] = case
        for future in as_completed(futures):
            take(future, futures[future])
    except BrokenExecutor as error:
        raise RuntimeError(
            f"a worker died, of too little memory as a rule ({done} of {counted(len(cases), 'case')} done, kept in "
            f"{folder}). Call again with fewer workers."
        ) from error
    except BaseException:
        # Also at Ctrl-C: a pool left to itself would finish all cases first.
        getattr(executor, "end", executor.shutdown)()
        raise
    executor.shutdown()
    return {case: failed[case] for case in cases if case in failed}


def _keep(
    cohort: Cohort, row: int, settings: RadiomicSettings, pairs: Mapping[str, Sequence[str]], folder: Path
) -> None:
    """Compute the features of a case, unless they are there."""
    there: dict[str, Image] = {}
    for mask, images in pairs.items():
        for name in (mask, *images):
            if cohort.present[name][row] and name not in there:
                there[name] = cohort.image(name, row)
    digest = _digest(settings, pairs, there)
    path = _kept(folder, cohort.case_id[row])
    if path.exists():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a damaged file is made anew
            if json.loads(path.read_text(encoding="utf-8"))["digest"] == digest:
                return
    features: dict[str, float] = {}
    case = cohort.case_id[row]
    for mask, images in pairs.items():
        if mask not in there:
            continue
        inside = np.asarray(there[mask].values)[..., 0] > 0
        if not inside.any():
            raise ValueError(f"{mask} is empty; expected a contour.")
        if "morphology" in settings.families:
            found = _shape(inside, there[mask], settings, case, mask)
            features |= {f"{mask}:{name}": value for name, value in found.items()}
        for name in images:
            if name in there:
                found = _of_values(inside, there[name], settings, case, name, mask)
                place = "" if len(pairs) == 1 else f" in {mask}"
                features |= {
                    f"{label}{place}:{feature}": value
                    for label, part in found.items()
                    for feature, value in part.items()
                }
    finite = {name: value if np.isfinite(value) else None for name, value in features.items()}
    write_json(path, {"digest": digest, "features": finite})


def _shape(
    inside: Bool[np.ndarray, "*space"], image: Image, settings: RadiomicSettings, case: str, mask: str
) -> dict[str, float]:
    """Features of the mask alone."""
    # An image that is outside its intensity range everywhere: otherwise mirp would sample Moran's I of it for seconds.
    arguments = {"base_feature_families": ["morphological"], "resegmentation_intensity_range": [2.0, 3.0]}
    found = _by_mirp(np.ones(inside.shape), inside, image, settings, case, mask, None, arguments)
    return {name: value for name, value in found.items() if name not in SPATIAL}


def _of_values(
    inside: Bool[np.ndarray, "*space"], image: Image, settings: RadiomicSettings, case: str, name: str, mask: str
) -> dict[str, dict[str, float]]:
    """Features of every channel of an image inside a mask."""
    families = [family for family in settings.families if family != "morphology"]
    if not families:
        return {}
    if image.values.shape[:-1] != inside.shape:
        raise ValueError(
            f"{name} has shape {image.values.shape[:-1]}, {mask} {inside.shape}; expected one grid. Put the mask onto "
            "the image in `preprocess`."
        )
    modality = MODALITIES.get(image.unit)
    limits, width = settings.intensity_range.get(name), settings.bin_width.get(name)
    arguments: dict[str, Any] = {"base_feature_families": [MIRP[family] for family in families]}
    if width is not None and modality is None and limits is None:
        raise ValueError(
            f"a bin width needs a least value, and the unit of {name} is {image.unit or 'unknown'}: give {name!r} an "
            "intensity_range, or use a number of bins."
        )
    if width is not None:
        arguments |= {"base_discretisation_method": "fixed_bin_size", "base_discretisation_bin_width": float(width)}
    else:
        arguments |= {"base_discretisation_method": "fixed_bin_number", "base_discretisation_n_bins": settings.bins}
    if limits is not None:
        arguments["resegmentation_intensity_range"] = [float(limit) for limit in limits]
    channels = image.values.shape[-1]
    found: dict[str, dict[str, float]] = {}
    for channel in range(channels):
        values = np.asarray(image.values[..., channel], np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds values that are not finite.")
        if limits is not None and not ((values[inside] >= limits[0]) & (values[inside] <= limits[1])).any():
            raise ValueError(
                f"{name}: nothing of {mask} lies between {limits[0]:g} and {limits[1]:g}, its intensity_range."
            )
        label = name if channels == 1 else f"{name}[{channel}]"
        part = _by_mirp(values, inside, image, settings, case, name, modality, arguments)
        found[label] = {
            feature: value for feature, value in part.items() if feature in SPATIAL or not feature.startswith("morph_")
        }
    return found


def _by_mirp(
    values: Float[np.ndarray, "*space"],
    inside: Bool[np.ndarray, "*space"],
    image: Image,
    settings: RadiomicSettings,
    case: str,
    name: str,
    modality: str | None,
    arguments: Mapping[str, Any],
) -> dict[str, float]:
    """Features by mirp's names; `image` says how far apart the values lie."""
    import_pair, extract = _extractor()
    if settings.spacing is not None and image.spacing is None:
        raise ValueError(f"{name} has no spacing, so that it cannot be resampled to {settings.spacing} mm.")
    flat = values.ndim == 2
    steps = tuple(map(float, image.spacing or (1.0,) * values.ndim))
    volume, region = (values[None], inside[None]) if flat else (values, inside)
    resampling = {} if settings.spacing is None else {"new_spacing": float(settings.spacing)}
    try:
        with _quiet():
            [pair] = import_pair(volume, region.astype(int), sample_name=case, image_modality=modality)
            [within] = pair.associated_masks
            # Arrays come without a spacing, and no argument gives them one.
            pair.image_spacing = within.image_spacing = (1.0, *steps) if flat else steps
            # The mask is named again: without it the whole image is measured, whatever is associated with it.
            found = extract(image=pair, mask=within, by_slice=settings.by_slice or flat, **resampling, **arguments)
    except Exception as error:
        raise ValueError(f"{name}: mirp says {error!r}.") from error
    if len(found) != 1:
        raise ValueError(f"{name}: mirp finds nothing of the mask to measure.")
    cells = found[0].iloc[0]
    features = {str(column): cells[column] for column in cells.index if str(column).startswith(PREFIXES)}
    return {column: float("nan") if cell is None else float(cell) for column, cell in features.items()}


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Without what mirp leaves behind.

    Where the root logger has no handler it sets one up that writes to the screen; names that it makes up are drawn from
    everybody's random numbers.
    """
    root, handler, state = logging.getLogger(), logging.NullHandler(), random.getstate()
    root.addHandler(handler)
    try:
        with warnings.catch_warnings():
            # Of its own defaults, which `RadiomicSettings` documents, and of libraries that moved on.
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeHandler(handler)
        random.setstate(state)


def _extractor() -> tuple[Any, Any]:
    """The two functions of mirp."""
    try:
        importing: Any = import_module("mirp.data_import.import_image_and_mask")
        mirp: Any = import_module("mirp")
    except ImportError as error:
        raise ImportError(INSTALL) from error
    return importing.import_image_and_mask, mirp.extract_features


def _version() -> str:
    from importlib.metadata import version

    return version("mirp")


def _pairs(cohort: Cohort, images: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Masks and the images in them that features are asked of."""
    found = measurable(cohort)
    if not found:
        raise ValueError(
            f"{cohort.name}: no source of kind 'mask', inside which features could be computed. Add the mask of the "
            "lesion as a source."
        )
    known = sorted({image for on in found.values() for image in on})
    for name in images:
        if name not in known:
            raise ValueError(f"{cohort.name}: {name!r} is no image on the grid of a mask; {close_to(name, known)}")
    pairs = {mask: tuple(image for image in on if not images or image in images) for mask, on in found.items()}
    pairs = {mask: on for mask, on in pairs.items() if on}
    if not pairs:
        raise ValueError(
            f"{cohort.name}: no image lies on the grid of its mask {listed(found)}. Put the mask onto the image in "
            "`preprocess`."
        )
    return pairs


def _fingerprint(cohort: Cohort, pairs: Mapping[str, Sequence[str]]) -> str:
    """Of ids, images and masks alone: another clinical column is no other radiomics."""
    names = sorted({*pairs, *(image for on in pairs.values() for image in on)})
    digest = hashlib.sha256(json.dumps(list(cohort.case_id)).encode())
    for name in names:
        digest.update(f"{name} {cohort.sources[name].fingerprint()}".encode())
        digest.update(cohort.present[name].tobytes())
    return digest.hexdigest()


def _digest(settings: RadiomicSettings, pairs: Mapping[str, Sequence[str]], there: Mapping[str, Image]) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, settings.to_json(), as_json(pairs)], sort_keys=True).encode())
    for name, image in sorted(there.items()):
        values = np.ascontiguousarray(image.values)
        size = None if image.spacing is None else [float(step) for step in image.spacing]
        digest.update(json.dumps([name, values.dtype.str, values.shape, size, image.unit]).encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _existing(path: Path, cohort: Cohort, record: Mapping[str, Any]) -> "pandas.DataFrame | None":
    """The table at the path, if it is the one that is wanted."""
    if not path.exists():
        return None
    beside = path.with_suffix(".json")
    if beside.exists():
        found = json.loads(beside.read_text(encoding="utf-8"))
        for key in ("format", "settings", "pairs"):
            if found.get(key) != record[key]:
                raise ValueError(
                    f"{path}: its features were computed with {key} {found.get(key)}; asked for are {record[key]}. Ask "
                    "for those of the table, or name another file."
                )
        return _read(path) if found.get("cohort") == record["cohort"] else None
    table = _read(path)
    lacking = [case for case in cohort.case_id if case not in table.index]
    if lacking:
        raise ValueError(
            f"{path}: no features of {counted(len(lacking), 'case')} of {cohort.name}, such as {lacking[0]}, and no "
            f"record {beside.name} of how they were computed. Complete the table, or name another file."
        )
    logger.info("%s: taken as it is; there is no record of its settings", path)
    return table.loc[list(cohort.case_id)]


def _read(path: Path) -> "pandas.DataFrame":
    import pandas as pd

    table = pd.read_csv(path, dtype={"case_id": str})
    if "case_id" not in table.columns:
        raise ValueError(f"{path}: no column 'case_id'; its columns are {listed(table.columns, 8)}.")
    return table.set_index("case_id")


def _kept(folder: Path, case: str) -> Path:
    return folder / f"{quote(case, safe='')}.json"
