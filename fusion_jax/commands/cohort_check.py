"""`fusion-jax cohort check`: the integrity report of a cohort folder."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from fusion_jax.commands._shared.screen import checked_folder, progress_bar, results_folder
from fusion_jax.wording import counted, listed

if TYPE_CHECKING:
    from fusion_jax.data.integrity import Report
    from fusion_jax.reporting.html import Section

__all__ = ["Config", "run"]

ON_SCREEN = 12
IN_A_CELL = 12
MOST_GROUPS = 200
LONGEST_NAME = 24

# Not seen. A table sets a column to the right whose cells all begin with a number, as sentences may.
SENTENCE = "\N{WORD JOINER}"


@dataclass(frozen=True)
class Config:
    """Check a cohort folder: what is missing, broken, doubled, leaking or implausible.

    Reads the table and every image once, and nothing stops at the first problem. Prints the worst findings and writes
    integrity.html and integrity.json to the folder OUT; nothing is written to the cohort. The exit code is 1 if there
    are errors, 2 if there is no cohort.toml or table that can be read.

    Example: fusion-jax cohort check data/sarcoma --out results/sarcoma

    Attributes:
      folder: with cohort.toml, or the path of such a file.
      out: folder of the report. Default: results/cohort/NAME, NAME being that of the cohort.
      images: read the images; without, only the table and the list of files are checked.
      flips: also look for copies of images that were flipped.
      workers: threads that read images.
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    images: bool = True
    flips: bool = False
    workers: int = 2


def run(config: Config) -> int:
    """Check, write the report and print its worst findings.

    Raises:
      ValueError: input that cannot be used; the message says what was found where, what was expected and what to do.
      OSError: a file that cannot be read or written.
    """
    from fusion_jax.data.integrity import check_cohort

    if config.workers < 1:
        raise ValueError(f"--workers is {config.workers}; expected 1 or more.")
    if config.out is not None:
        checked_folder(config.out)  # before the work, not after it
    with progress_bar("reading the table") as advance:
        report = check_cohort(
            config.folder,
            images=config.images,
            flips=config.flips,
            workers=config.workers,
            progress=lambda done, total: advance(done, total, "reading images" if done < total else "comparing"),
        )
    out = results_folder(report.name, config.out)
    _write(report, config, out)
    _print(report)
    print(f"\nReport: {out / 'integrity.html'}")
    return 1 if report.counts["error"] else 0


def _print(report: "Report") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    facts = report.facts
    console = Console()
    found = ", ".join(counted(count, word) for word, count in report.counts.items())
    table = Table(
        title=f"{report.name}: {facts['cases']} cases of {counted(facts['patients'], 'patient')}. {found}.",
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("finding", overflow="fold")
    colours = {"error": "red", "warning": "yellow", "note": "dim"}
    for finding in report.findings[:ON_SCREEN]:
        # As text: brackets in a message are no markup.
        table.add_row(
            Text(finding.severity, style=colours[finding.severity]),
            Text(f"{finding.check}\n{_cut(finding.where or 'table')}"),
            Text(finding.message),
        )
    if len(report.findings) > ON_SCREEN:
        table.caption = f"and {len(report.findings) - ON_SCREEN} more in the report"
    if report.findings:
        console.print(table)
    else:
        console.print(Text(f"{table.title} Nothing to object to."))


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _write(report: "Report", config: Config, out: Path) -> None:
    from fusion_jax.records import run_record, write_json
    from fusion_jax.reporting import write_report

    record = run_record()
    options = {"images": config.images, "flips": config.flips}
    write_json(out / "integrity.json", _finite(report.to_dict()) | {"options": options, "record": record})
    counts, facts = report.counts, report.facts
    summary = [
        f"{counted(facts['cases'], 'case')} of {counted(facts['patients'], 'patient')}"
        + (f" at {counted(facts['sites'], 'site')}" if facts["sites"] else "")
        + f": {', '.join(counted(count, word) for word, count in counts.items())}.",
        *(
            f"{one.where + ': ' if one.where else ''}{one.message}"
            for one in report.findings
            if one.severity == "error"
        ),
    ]
    if not counts["error"]:
        summary.append("Nothing found makes results wrong by itself; warnings are for a person to judge.")
    if not facts["images_read"] and any(one["kind"] != "table" for one in facts["sources"].values()):
        summary.append("Images were not read.")
    write_report(
        out / "integrity.html",
        title=f"Integrity of {report.name}",
        summary=summary,
        sections=_sections(report, config),
        record=record,
    )


def _finite(value: Any) -> Any:
    """Plain data with None for NaN and infinities, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sections(report: "Report", config: Config) -> list["Section"]:
    from fusion_jax.data.integrity import CHECKS
    from fusion_jax.reporting import Section, Table

    meaning = {
        "error": "Errors make results wrong or stop a run. Mend these first.",
        "warning": "Warnings are for a person to judge: right in one study, a mistake in another.",
        "note": "Notes are good to know.",
    }
    sections = []
    for severity, text in meaning.items():
        rows = [
            (one.check, one.where or "table", SENTENCE + one.message, one.advice, listed(one.cases, IN_A_CELL))
            for one in report.findings
            if one.severity == severity
        ]
        if rows:
            heading = f"{severity.capitalize()}s"
            table = Table(
                ("check", "where", "found", "what to do", "cases"),
                rows,
                f"{heading}: {counted(len(rows), 'finding')}.",
            )
            sections.append(Section(heading, [text], [table]))
    facts = report.facts
    sources = [
        (
            name,
            one["kind"],
            one["cases"],
            _shapes(one.get("shapes", {})),
            ", ".join(one.get("dtypes", {})),
            f"{one['low']:g} to {one['high']:g} {' '.join(one['units'])}".strip() if "low" in one else "",
            _spacing(one.get("spacing_mm")),
        )
        for name, one in facts["sources"].items()
    ]
    columns = [
        (one["column"], one["role"], one["unit"], one["known"], one["different"], one["content"])
        for one in facts["columns"]
    ]
    items = [
        Table(
            ("source", "kind", "cases", "shapes in the files", "numbers", "values", "voxels (mm)"),
            sources,
            f"Sources of n = {facts['cases']} cases; shapes have channels last, the most frequent first.",
        ),
        Table(
            ("column", "role", "unit", "known", "different", "content"),
            columns,
            f"Columns of n = {facts['cases']} cases. What columns without a role hold is not shown.",
        ),
    ]
    classes = [
        (column, name, count, f"{100 * count / facts['cases']:.1f} %")
        for column, counts in facts["classes"].items()
        for name, count in counts.items()
    ]
    if classes:
        items.insert(0, Table(("label", "class", "cases", "share"), classes, f"Labels of n = {facts['cases']} cases."))
    sections.append(Section("What is there", [], items))
    if report.duplicates:
        rows = [
            (number, listed(group, IN_A_CELL)) for number, group in enumerate(report.duplicates[:MOST_GROUPS], start=1)
        ]
        table = Table(
            ("group", "cases"),
            rows,
            f"{counted(len(report.duplicates), 'group')} of cases with the same image, or nearly.",
        )
        sections.append(
            Section("Copies", ["Give these groups to the splits, so that copies stay on one side."], [table])
        )
    marks = {check: [one for one in report.findings if one.check == check] for check in CHECKS}
    rows = [
        (check, text, counted(len(marks[check]), "finding") if marks[check] else "–") for check, text in CHECKS.items()
    ]
    limits = (
        "Near duplicates are found where the image was compressed, resized, changed in brightness or contrast, or "
        "inverted; hardly ever where it was cropped or written on"
        + (". Flipped copies were looked for." if config.flips else ", and not where it was flipped (--flips).")
        + " Personal data is looked for by names of columns, patterns and DICOM elements; text in the picture and "
        "faces are not. That nothing was found proves nothing."
    )
    table = Table(("check", "what is asked", "found"), rows, "Every check that was made.")
    sections.append(Section("What was checked", [limits], [table]))
    return sections


def _shapes(shapes: dict[str, int]) -> str:
    shown = [f"{shape} ({count})" for shape, count in list(shapes.items())[:3]]
    return ", ".join(shown) + (" …" if len(shapes) > 3 else "")


def _spacing(bounds: list[list[float]] | None) -> str:
    if bounds is None:
        return ""
    low, high = (" x ".join(f"{step:g}" for step in one) for one in bounds)
    return low if low == high else f"{low} to {high}"
