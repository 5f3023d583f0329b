"""All checks of a cohort in one call."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fusion_jax.data.cohort import Cohort
from fusion_jax.data.integrity.columns import (
    check_columns,
    check_labels,
    check_outcomes,
    check_patients,
    check_values,
    column_summary,
)
from fusion_jax.data.integrity.findings import Finding, Report
from fusion_jax.data.integrity.images import check_duplicates, check_images, image_summary
from fusion_jax.data.integrity.leakage import check_confounding, check_leaks
from fusion_jax.data.integrity.opening import Opened, open_leniently
from fusion_jax.data.integrity.personal import check_personal_data
from fusion_jax.data.integrity.pixels import read_pixels

__all__ = ["check_cohort"]


def check_cohort(
    cohort: Cohort | str | Path,
    *,
    images: bool = True,
    flips: bool = False,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Everything that is wrong or odd about a cohort; nothing stops at the first problem.

    A folder says more than a cohort in memory: rows and cells that cannot be used, missing files, images before their
    preprocessing. Every image is read once; about 5 kB a case are kept.

    Args:
      cohort: a cohort, or a folder with a `cohort.toml`.
      images: read them; otherwise only the table and the list of files are checked.
      flips: also look for copies that were flipped.
      workers: threads that read images.
      progress: told how many of how many cases have been read.

    Returns:
      The findings, worst first.

    Raises:
      FileNotFoundError, ValueError: a folder whose `cohort.toml` or table cannot be read at all.

    Example:
      >>> from fusion_jax.data.collections import hcc_survival
      >>> report = check_cohort(hcc_survival())
      >>> [finding.column for finding in report.about("mixed units")]
      ['platelets', 'leukocytes', 'total_proteins']
    """
    opened = Opened(cohort, None, {}, []) if isinstance(cohort, Cohort) else open_leniently(cohort)
    found = opened.cohort
    findings = list(opened.findings)
    facts = read_pixels(opened, workers=workers, progress=progress) if images else {}
    groups: list[list[str]] = []
    if facts:
        findings += check_images(opened, facts)
        doubled, groups = check_duplicates(found, facts, flips=flips)
        findings += doubled
    paths = {} if opened.files is None else opened.files.paths
    findings += _of_table(found)
    findings += check_leaks(found, paths)
    findings += check_confounding(found, facts)
    return Report.of(found.name, findings, _facts(found, facts), groups)


def _of_table(cohort: Cohort) -> Iterator[Finding]:
    checks: Iterable[Callable[[Cohort], Iterator[Finding]]] = (
        check_labels,
        check_outcomes,
        check_columns,
        check_values,
        check_patients,
        check_personal_data,
    )
    for check in checks:
        yield from check(cohort)


def _facts(cohort: Cohort, facts: Any) -> dict[str, Any]:
    classes = {}
    for column in cohort.columns("label"):
        codes, names = cohort.codes(column)
        classes[column] = {name: int((codes == code).sum()) for code, name in enumerate(names)}
    return {
        "cases": len(cohort),
        "patients": len(set(cohort.patient_id.tolist())),
        "sites": 0 if cohort.site is None else len(set(cohort.site.tolist()) - {""}),
        "classes": classes,
        "sources": image_summary(cohort, facts),
        "columns": column_summary(cohort),
        "images_read": bool(facts),
    }
