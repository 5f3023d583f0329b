"""`fusion-jax cohort show`: contact sheets of the images and histograms of the columns of a cohort."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from fusion_jax.commands._shared.screen import file_name, progress_bar, results_folder
from fusion_jax.wording import counted

if TYPE_CHECKING:
    from fusion_jax.data.cohort import Cohort
    from fusion_jax.data.image import Image
    from fusion_jax.reporting.contact_sheet import Tile
    from fusion_jax.reporting.html import Figure

__all__ = ["Config", "run"]


@dataclass(frozen=True)
class Config:
    """Look at a cohort: pictures with masks, boxes and clinical values, and a histogram for every column.

    Writes cohort.html and figures/ to the folder OUT; nothing is written to the cohort. Images are shown as models get
    them, after preprocessing. Columns with the role `never` are not shown.

    Example: fusion-jax cohort show data/sarcoma --cases 12

    Attributes:
      folder: with cohort.toml, or the path of such a file.
      out: folder of the report. Default: results/cohort/NAME, NAME being that of the cohort.
      cases: pictures on a sheet, the same number of every class as far as there are.
      only: ids of the cases to show, instead of drawing them.
      values: input columns whose value is written below a picture, the first ones by default.
      seed: of the draw.
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    cases: int = 16
    only: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="CASE...", help_behavior_hint="")] = None
    values: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="COLUMN...", help_behavior_hint="")] = None
    seed: int = 0


VALUES = 4
"""Input columns below a picture unless they are named."""


def run(config: Config) -> int:
    """Draw, write the report and say where it is.

    Raises:
      ValueError: input that cannot be used; the message says what was found where, what was expected and what to do.
      OSError: a file that cannot be read or written.
    """
    from fusion_jax.data.folder import open_cohort

    if config.cases < 1:
        raise ValueError(f"--cases is {config.cases}; expected 1 or more.")
    cohort = open_cohort(config.folder, missing="absent")
    out = results_folder(cohort.name, config.out)
    rows = _chosen(cohort, config)
    shown = _shown_values(cohort, config.values)
    with progress_bar("pictures") as progress:
        images = [name for name, source in cohort.sources.items() if source.kind == "image"]
        histograms = [
            column for column in cohort.table.columns if cohort.role(column) in ("input", "group", "time", "event")
        ]
        total, done = len(images) * len(rows) + len(histograms), itertools.count(1)
        on = _placed(config.folder)

        def advance(doing: str) -> None:
            progress(next(done), total, doing)

        sheets = {}
        problems: list[str] = []
        for name in images:
            tiles = []
            for row in rows:
                tiles.append(_tile(cohort, name, row, on, shown, problems))
                advance(f"pictures of {name}")
            sheets[name] = _sheet(cohort, name, rows, tiles)
        figures = {}
        for column in histograms:
            figure = _histogram(cohort, column)
            if figure is not None:
                figures[column] = figure
            advance("histograms")
    _write(cohort, sheets, figures, problems, out)
    pictures = f"{counted(len(sheets), 'contact sheet')} of {counted(len(rows), 'case')}" if sheets else "No images"
    print(f"{pictures}, {counted(len(figures), 'histogram')}.")
    print(f"Report: {out / 'cohort.html'}")
    return 0


def _chosen(cohort: "Cohort", config: Config) -> list[int]:
    """Rows to show: those asked for, or as many of every class, drawn and sorted by class."""
    import numpy as np

    if config.only is not None:
        place = {case: row for row, case in enumerate(cohort.case_id)}
        strange = [case for case in config.only if case not in place]
        if strange:
            raise ValueError(
                f"--only names {strange[0]!r}, which is no case of {cohort.name}; its ids start with "
                f"{', '.join(cohort.case_id[:3])}."
            )
        return [place[case] for case in config.only]
    codes = cohort.label if cohort.columns("label") else np.zeros(len(cohort), np.int32)
    drawn = np.random.default_rng([config.seed, len(cohort)]).permutation(len(cohort))
    # Cases with most pictures first: an empty place shows nothing.
    images = [there for name, there in cohort.present.items() if cohort.sources[name].kind == "image"]
    drawn = drawn[np.argsort(-np.sum(images, axis=0)[drawn], kind="stable")] if images else drawn
    by_class = [[int(row) for row in drawn if codes[row] == code] for code in sorted(set(codes.tolist()), reverse=True)]
    # In turns, so that a class with few cases leaves its places to the others.
    turns = [members[turn] for turn in range(max(map(len, by_class))) for members in by_class if turn < len(members)]
    return sorted(turns[: config.cases], key=lambda row: (-codes[row], row))


def _shown_values(cohort: "Cohort", wanted: Sequence[str] | None) -> list[str]:
    if wanted is None:
        # The best known first: a column of gaps says little.
        known: Any = cohort.inputs.notna().mean()
        return [column for column in cohort.columns("input") if known[column] > 0.5][:VALUES]
    for column in wanted:
        if column not in cohort.table.columns or cohort.role(column) == "never":
            raise ValueError(
                f"--values names {column!r}; expected columns with a role other than never: "
                f"{', '.join(name for name in cohort.table.columns if cohort.role(name) != 'never')}."
            )
    return list(wanted)


class _Placed(NamedTuple):
    """What lies on which image: every mask on one, all boxes on one."""

    masks: Mapping[str, str]
    boxes: str | None


def _placed(folder: Path) -> _Placed:
    from fusion_jax.data.config import read_config

    config = read_config(folder)
    masks = {name: source.of for name, source in config.sources.items() if source.of is not None}
    return _Placed(masks, None if config.boxes is None else config.boxes.of)


def _tile(cohort: "Cohort", name: str, row: int, on: _Placed, shown: Sequence[str], problems: list[str]) -> "Tile":
    import numpy as np

    from fusion_jax.reporting.contact_sheet import Tile, picture_of

    lines = [f"{column}: {_cell(cohort, column, row)}" for column in cohort.columns("label")[:1]]
    lines += [f"{column} {_cell(cohort, column, row)}" for column in shown]
    nothing = Tile(np.zeros((0, 0, 1), np.uint8), cohort.case_id[row], lines)
    if not cohort.present[name][row]:
        return nothing._replace(lines=["absent", *lines])
    try:
        image = cohort.image(name, row)
    except (ValueError, OSError, ImportError) as error:
        problems.append(str(error))
        return nothing._replace(lines=["cannot be read", *lines])
    mask = None
    for other, image_name in on.masks.items():
        if image_name == name and cohort.present[other][row]:
            found = _mask(cohort, other, row, image, problems)
            mask = found if mask is None or found is None else _joined(mask, found)
    picture, labels, aspect = picture_of(image, mask)
    boxes = None
    if cohort.boxes is not None and image.values.ndim == 3 and on.boxes == name:
        boxes = cohort.boxes[row]
        step = image.values.shape[1] / picture.shape[1]
        boxes = boxes._replace(corners=boxes.corners / step)
    return Tile(picture, cohort.case_id[row], lines, None if mask is None else labels, boxes, aspect)


def _mask(cohort: "Cohort", name: str, row: int, image: "Image", problems: list[str]) -> "Image | None":
    try:
        mask = cohort.image(name, row)
    except (ValueError, OSError, ImportError) as error:
        problems.append(str(error))
        return None
    if mask.values.shape[:-1] != image.values.shape[:-1]:
        problems.append(
            f"{name} of case {cohort.case_id[row]} has shape {mask.values.shape}, its image {image.values.shape}; not "
            "drawn."
        )
        return None
    return mask


def _joined(first: "Image", second: "Image") -> "Image":
    """Two masks on one picture: the second in labels of its own."""
    import numpy as np

    top = int(first.values.max(initial=0))
    shifted = np.where(second.values[..., :1] > 0, second.values[..., :1].astype(np.int64) + top, 0)
    return first._replace(values=np.maximum(first.values[..., :1].astype(np.int64), shifted))


def _cell(cohort: "Cohort", column: str, row: int) -> str:
    import pandas as pd

    cell: Any = cohort.table[column].iloc[row]
    if pd.isna(cell):
        return "–"
    text = f"{cell:.4g}" if isinstance(cell, float) else str(cell)
    unit = cohort.units.get(column, "")
    return f"{text} {unit}" if unit else text


def _sheet(cohort: "Cohort", name: str, rows: Sequence[int], tiles: Sequence["Tile"]) -> "Figure":
    from fusion_jax.reporting.contact_sheet import contact_sheet

    source = cohort.sources[name]
    there = int(cohort.present[name].sum())
    parts = [f"{name}: {len(rows)} of {len(cohort)} cases ({there} have it), after preprocessing"]
    if any(tile.labels is not None for tile in tiles):
        parts.append("outlines are masks")
    if any(tile.boxes is not None and len(tile.boxes.corners) for tile in tiles):
        parts.append("rectangles are boxes")
    first = next((row for row, tile in zip(rows, tiles, strict=True) if tile.picture.size), None)
    if first is not None and (image := source.image(first)).values.ndim == 4:
        parts.append(
            "maximum from front to back, high uptake dark"
            if image.unit == "SUV"
            else "the axial slice with most of the mask, or the middle one; the patient's right on the left"
        )
    return contact_sheet(tiles, caption="; ".join(parts) + ".")


def _histogram(cohort: "Cohort", column: str) -> "Figure | None":
    """A column by class; None where nothing is known of it."""
    import numpy as np
    import pandas as pd

    from fusion_jax.reporting.column_figures import category_figure, number_figure

    cells: Any = cohort.table[column]
    if cohort.columns("label"):
        codes, classes, by = cohort.label, list(cohort.classes), f" by {cohort.columns('label')[0]}"
    else:
        codes, classes, by = np.zeros(len(cohort), np.int32), ["all cases"], ""
    missing = int(cells.isna().sum())
    unlabelled = int((codes < 0).sum())
    caption = f"{column}{by}: n = {len(cells) - missing} of {len(cells)} cases, {missing} missing"
    caption += f"; {unlabelled} cases without a label are not drawn." if unlabelled else "."
    if not (cells.notna() & (codes >= 0)).any():
        return None
    unit = cohort.units.get(column, "")
    name = f"{column} ({unit})" if unit else column
    is_number = pd.api.types.is_numeric_dtype(cells.dtype) and not pd.api.types.is_bool_dtype(cells.dtype)
    present = [(code, word) for code, word in enumerate(classes) if (codes == code).any()]
    if is_number and cells.nunique() > 2:
        values = cells.to_numpy(dtype=float, na_value=np.nan)
        return number_figure({word: values[codes == code] for code, word in present}, xlabel=name, caption=caption)
    if pd.api.types.is_datetime64_any_dtype(cells.dtype):
        years = cells.dt.year.to_numpy(dtype=float, na_value=np.nan)
        return number_figure(
            {word: years[codes == code] for code, word in present}, xlabel=f"{column} (year)", caption=caption
        )
    words = cells.map(_level, na_action="ignore")
    levels = sorted(words.dropna().unique())
    counts = {
        word: [int(((words == level).to_numpy(bool, na_value=False) & (codes == code)).sum()) for level in levels]
        for code, word in present
    }
    return category_figure(counts, levels, label=name, caption=caption)


def _level(cell: Any) -> str:
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _write(
    cohort: "Cohort",
    sheets: Mapping[str, "Figure"],
    figures: Mapping[str, "Figure"],
    problems: Sequence[str],
    out: Path,
) -> None:
    from fusion_jax.records import run_record
    from fusion_jax.reporting import Section, save_figure, write_report

    for name, figure in sheets.items():
        save_figure(figure, out / "figures" / f"images_{file_name(name)}.svg")
    for column, figure in figures.items():
        save_figure(figure, out / "figures" / f"column_{file_name(column)}.svg")
    sections = [Section(f"Images: {name}", [], [figure]) for name, figure in sheets.items()]
    for role, heading in (("input", "Inputs"), ("group", "Groups"), ("time", "Follow-up"), ("event", "Events")):
        own = [figure for column, figure in figures.items() if cohort.role(column) == role]
        if own:
            sections.append(Section(heading, [], own))
    if problems:
        sections.append(Section("Not shown", [*dict.fromkeys(problems)], []))
    label = cohort.columns("label")
    summary = [f"{len(cohort)} cases of {len(set(cohort.patient_id.tolist()))} patients."]
    if label:
        codes = cohort.label
        counts = ", ".join(f"{name} {int((codes == code).sum())}" for code, name in enumerate(cohort.classes))
        summary.append(f"{label[0]}: {counts}{f', missing {int((codes < 0).sum())}' if (codes < 0).any() else ''}.")
    if problems:
        summary.append(f"{len(problems)} images or masks could not be shown; `fusion-jax cohort check` says more.")
    if sheets:
        summary.append("Pictures of patients: keep this page as safe as the images themselves.")
    write_report(out / "cohort.html", title=f"The cohort {cohort.name}", summary=summary, sections=sections,
                 record=run_record())  # fmt: skip
