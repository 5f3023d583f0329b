"""`cohort.toml`: the description of a cohort folder, read strictly.

Every key is checked here, before a table or an image is opened. A whole file:

```toml
name = "sarcoma"
table = "cases.csv"                  # or .xlsx (with sheet = "..."), .parquet; one row a case

[ids]
case = "case_id"                     # one row each
patient = "patient_id"               # patients never cross splits; the case column where a case is a patient
site = "hospital"                    # optional: what folds may leave out

[roles]                              # a column that is not named is `never`: no model sees it
input = ["age", "sex", "grade"]
label = "metastasis"
time = "days"                        # with event: follow-up for survival
event = "died"
group = ["scanner"]                  # for strata and stratified reports
never = ["name", "outcome_text"]

[units]                              # of columns, which then must hold numbers
age = "years"

[types]                              # "number", "text" or "date", where cells must be just that
ct_date = "date"

[levels]                             # of columns, in order; of a label of two, the last is the positive one
metastasis = ["no", "yes"]

[sources.ct]                         # an image of every case
files = "images/{case_id}_ct.nii.gz" # columns in braces; or column = "ct_path"; below `root`, by default this folder
unit = "HU"
required = true                      # false: a case without the file lacks the source
preprocess = [
  {op = "crop_to_mask", mask = "tumour.file", margin_mm = 20},
  {op = "resample", spacing = 2},
  {op = "window", low = -160, high = 240},
]

[sources.pet]
files = "images/{case_id}_pet.npz"
reader = "npz"                       # by the file's content unless given
options = {array = "suv", affine = "affine"}
preprocess = [{op = "onto", reference = "ct"}]

[sources.tumour]
files = "images/{case_id}_rtstruct.dcm"
kind = "mask"
of = "ct"
reader = "rtstruct"
options = {region = "GTV"}           # `{column}` in a text is filled in case by case
preprocess = [{op = "onto", reference = "ct"}]

[sources.xray]
files = "images/{case_id}.png"
preprocess = [{op = "resize", size = 512}]

[sources.clinical]                   # columns of the table; encoders are fitted to them on training patients
columns = ["age", "sex", "grade"]

[boxes]                              # one row a box, in pixels of the file; boxes follow resize, flip, crop_or_pad
file = "boxes.csv"
of = "xray"
case = "case_id"
label = "label"
corners = ["x0", "y0", "x1", "y1"]
```

Who is in, measurements near an index date, derived columns and outcomes at a horizon: `fusion_jax.data.definition`.
Steps of `preprocess`: `fusion_jax.data.images.pipeline`; there `ct` is the preprocessed image of another source, and
`ct.file` the image as its file holds it. Readers and their options: `fusion_jax.data.readers`.
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from fusion_jax.data.cohort import Role

__all__ = ["BoxesConfig", "CohortConfig", "SourceConfig", "read_config"]

FILE = "cohort.toml"
DEFINITION = ("index", "measure", "derive", "include", "exclude", "horizon")
"""Tables of the file that define who is in the cohort; `fusion_jax.data.definition` reads them."""

ColumnType = Literal["number", "text", "date"]


class SourceConfig(NamedTuple):
    """Where a source of the cohort comes from.

    Attributes:
      files: pattern of the path with columns in braces, such as `images/{case_id}.nii.gz`; or None.
      column: column of the table that holds the path; or None.
      columns: columns of the table that are the source; then it has no files.
      root: folder that paths start from, by default the cohort folder.
      kind: `image`, or `mask` of the image `of`.
      of: image that a mask lies on; None otherwise.
      reader: name of a reader; None to look at the file.
      options: of the reader.
      unit: of the values, where the file does not say; "" if neither.
      preprocess: steps for `fusion_jax.data.images.pipeline.build_pipeline`.
      required: every case must have it; otherwise a missing file makes the source absent.
    """

    files: str | None = None
    column: str | None = None
    columns: tuple[str, ...] | None = None
    root: str | None = None
    kind: Literal["image", "mask"] = "image"
    of: str | None = None
    reader: str | None = None
    options: Mapping[str, Any] = {}
    unit: str = ""
    preprocess: tuple[Mapping[str, Any], ...] = ()
    required: bool = True


class BoxesConfig(NamedTuple):
    """Table of boxes: one row a box.

    Attributes:
      file: CSV, Excel or Parquet.
      of: image source whose pixels the corners count.
      case, label: columns with the case id and the class.
      corners: columns with x0, y0, x1, y1.
      classes: names of the classes in order; sorted where empty.
    """

    file: str
    of: str
    case: str = "case_id"
    label: str = "label"
    corners: tuple[str, str, str, str] = ("x0", "y0", "x1", "y1")
    classes: tuple[str, ...] = ()


class CohortConfig(NamedTuple):
    """A cohort folder as `cohort.toml` describes it.

    Attributes:
      path: of the file.
      name: of the cohort.
      table: CSV, Excel or Parquet file with one row a case.
      sheet: of an Excel file; the first by default.
      case, patient, site: columns with the ids; `site` is None where there is none.
      roles: column to role.
      units: column to unit.
      types: column to how its cells are read, where looking at them is not enough.
      levels: column to its words in order.
      sources: by name.
      boxes: None where there are none.
      definition: the tables that define who is in, as TOML has them.
    """

    path: Path
    name: str
    table: str
    sheet: str | None
    case: str
    patient: str
    site: str | None
    roles: Mapping[str, Role]
    units: Mapping[str, str]
    types: Mapping[str, ColumnType]
    levels: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, SourceConfig]
    boxes: BoxesConfig | None
    definition: Mapping[str, Any]


def read_config(folder: str | Path) -> CohortConfig:
    """Read and check the `cohort.toml` of a folder, or a file of that format by its path.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not TOML, or a key is unknown, missing or of the wrong kind; the message names file and key.
    """
    path = Path(folder)
    path = path / FILE if path.is_dir() else path
    if path.with_name("cohort.json").is_file() and path.name == FILE and not path.is_file():
        raise FileNotFoundError(
            f"{path.parent}: a folder of shards, not of a table and images. Open it in Python: "
            "`fusion_jax.data.open_shards`."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. Write a first one with `fusion-jax cohort init TABLE IMAGES`, or check the path."
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no TOML in UTF-8 ({error}). Fix that line.") from None
    return parse_config(content, path)


def parse_config(content: Mapping[str, Any], path: Path) -> CohortConfig:
    """Check the content of a `cohort.toml`; `path` is for messages and for paths that start from its folder."""
    where = str(path)
    allowed = ("name", "table", "sheet", "ids", "roles", "units", "types", "levels", "sources", "boxes", *DEFINITION)
    _check_keys(content, allowed, where)
    ids = _get(content, "ids", dict, where)
    _check_keys(ids, ("case", "patient", "site"), f"{where}: ids")
    roles = _roles(content.get("roles", {}), f"{where}: roles")
    for key in ("case", "patient"):
        if roles.get(ids.get(key), "never") not in ("group", "never"):
            raise ValueError(
                f"{where}: roles: column {ids[key]!r}, the {key} id, is {roles[ids[key]]}; a model that reads ids "
                "knows its patients. Take it out."
            )
    sources = {
        name: _source(values, f"{where}: sources.{name}")
        for name, values in _get(content, "sources", dict, where).items()
    }
    if not sources:
        raise ValueError(f"{where}: no source; expected at least one table [sources.NAME].")
    for name, source in sources.items():
        on = sources.get(source.of) if source.of is not None else None
        if source.of is not None and (on is None or on.columns is not None or on.kind != "image"):
            raise ValueError(
                f"{where}: sources.{name}: `of` names {source.of!r}; expected the name of an image source."
            )
        for column in source.columns or ():
            if roles.get(column) != "input":
                raise ValueError(
                    f"{where}: sources.{name} takes column {column!r}, whose role is {roles.get(column, 'never')!r}; a "
                    "model reads columns with the role 'input' only."
                )
    boxes = None
    if "boxes" in content:
        boxes = _boxes(_get(content, "boxes", dict, where), sources, f"{where}: boxes")
    types = _words(content.get("types", {}), f"{where}: types")
    for column, kind in types.items():
        if kind not in get_args(ColumnType):
            raise ValueError(f"{where}: types: {column} is {kind!r}; expected {', '.join(get_args(ColumnType))}.")
    levels = content.get("levels", {})
    if not isinstance(levels, dict) or not all(isinstance(words, list) for words in levels.values()):
        raise ValueError(f"{where}: levels; expected a list of class names for each label column.")
    return CohortConfig(
        path=path,
        name=_get(content, "name", str, where, path.resolve().parent.name),
        table=_get(content, "table", str, where),
        sheet=_get(content, "sheet", str, where, None),
        case=_get(ids, "case", str, f"{where}: ids"),
        patient=_get(ids, "patient", str, f"{where}: ids"),
        site=_get(ids, "site", str, f"{where}: ids", None),
        roles=roles,
        units=_words(content.get("units", {}), f"{where}: units"),
        types=types,  # pyright: ignore[reportArgumentType]
        levels={column: tuple(map(str, words)) for column, words in levels.items()},
        sources=sources,
        boxes=boxes,
        definition={key: content[key] for key in DEFINITION if key in content},
    )


def _roles(content: Any, where: str) -> dict[str, Role]:
    if not isinstance(content, dict):
        raise ValueError(f'{where}: expected a table such as `input = ["age"]`, found {content!r}.')
    _check_keys(content, get_args(Role), where)
    roles: dict[str, Role] = {}
    for role, columns in content.items():
        columns = [columns] if isinstance(columns, str) else columns
        if not isinstance(columns, list) or not all(isinstance(column, str) for column in columns):
            raise ValueError(f"{where}.{role}: expected a column or a list of columns, found {columns!r}.")
        for column in columns:
            if column in roles:
                raise ValueError(f"{where}: column {column!r} is both {roles[column]} and {role}; expected one role.")
            roles[column] = role
    return roles


def _source(content: Any, where: str) -> SourceConfig:
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected a table, found {content!r}.")
    _check_keys(content, SourceConfig._fields, where)
    given = [key for key in ("files", "column", "columns") if key in content]
    if len(given) != 1:
        raise ValueError(
            f"{where}: {' and '.join(given) or 'neither files nor column nor columns'} given; expected one of "
            "`files` (a pattern), `column` (with paths) or `columns` (of the table)."
        )
    if given == ["columns"]:
        if len(content) > 1:
            raise ValueError(
                f"{where}: `columns` goes alone; remove {', '.join(key for key in content if key != 'columns')}."
            )
        return SourceConfig(columns=_column_names(content["columns"], where))
    kind = _get(content, "kind", str, where, "image")
    of = _get(content, "of", str, where, None)
    if kind not in ("image", "mask") or (kind == "mask") != (of is not None):
        raise ValueError(
            f"{where}: kind {kind!r}, of {of!r}; expected kind 'image', or 'mask' with `of` = an image source."
        )
    steps = content.get("preprocess", [])
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ValueError(
            f'{where}.preprocess: expected a list of tables such as {{op = "window", low = -160, high = 240}}.'
        )
    return SourceConfig(
        files=_get(content, "files", str, where, None),
        column=_get(content, "column", str, where, None),
        root=_get(content, "root", str, where, None),
        kind=kind,
        of=of,
        reader=_get(content, "reader", str, where, None),
        options=_get(content, "options", dict, where, {}),
        unit=_get(content, "unit", str, where, ""),
        preprocess=tuple(steps),
        required=_get(content, "required", bool, where, True),
    )


def _boxes(content: Mapping[str, Any], sources: Mapping[str, SourceConfig], where: str) -> BoxesConfig:
    _check_keys(content, BoxesConfig._fields, where)
    corners = content.get("corners", list(BoxesConfig._field_defaults["corners"]))
    if not isinstance(corners, list) or len(corners) != 4:
        raise ValueError(f"{where}.corners: expected the columns of x0, y0, x1, y1, found {corners!r}.")
    of = _get(content, "of", str, where)
    if of not in sources or sources[of].kind != "image" or sources[of].columns is not None:
        raise ValueError(f"{where}: `of` names {of!r}; expected the name of an image source.")
    return BoxesConfig(
        file=_get(content, "file", str, where),
        of=of,
        case=_get(content, "case", str, where, "case_id"),
        label=_get(content, "label", str, where, "label"),
        corners=tuple(corners),
        classes=_column_names(content.get("classes", []), f"{where}.classes") if content.get("classes") else (),
    )


def _column_names(content: Any, where: str) -> tuple[str, ...]:
    if not isinstance(content, list) or not content or not all(isinstance(word, str) for word in content):
        raise ValueError(f"{where}: expected a list of names, found {content!r}.")
    repeated = [word for word in content if content.count(word) > 1]
    if repeated:
        raise ValueError(f"{where}: {repeated[0]!r} stands there twice; expected different names.")
    return tuple(content)


def _words(content: Any, where: str) -> dict[str, str]:
    if not isinstance(content, dict) or not all(isinstance(word, str) for word in content.values()):
        raise ValueError(f"{where}: expected text for every column, found {content!r}.")
    return dict(content)


REQUIRED = object()
NAMES = {str: "text", bool: "true or false", dict: "a table"}


def _get(content: Mapping[str, Any], key: str, kind: type, where: str, default: Any = REQUIRED) -> Any:
    if key not in content:
        if default is REQUIRED:
            raise ValueError(f"{where}: no `{key}`; expected {NAMES[kind]}.")
        return default
    if not isinstance(content[key], kind):
        raise ValueError(f"{where}: `{key}` is {content[key]!r}; expected {NAMES[kind]}.")
    return content[key]


def _check_keys(content: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    for key in content:
        if key not in allowed:
            close = difflib.get_close_matches(key, allowed, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"expected {', '.join(allowed)}."
            raise ValueError(f"{where}: unknown key `{key}`; {hint}")
