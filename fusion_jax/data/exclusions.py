"""Cases that are left out by hand, such as images with artefacts, each with its reason."""

import csv
import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fusion_jax.data.image import UnreadableFile

__all__ = ["Exclusion", "exclude", "read_exclusions"]


class Exclusion(NamedTuple):
    """What a list of exclusions did to a cohort.

    Attributes:
      kept: positions of the cases that stay, in order; `cohort.take(kept)` is the cohort without the others.
      excluded: case id to reason, in the order of the cases.
    """

    kept: tuple[int, ...]
    excluded: dict[str, str]


def read_exclusions(path: str | os.PathLike[str]) -> dict[str, str]:
    r"""Case ids with reasons from a CSV file with the columns `case_id` and `reason`.

    Raises:
      UnreadableFile: it is no CSV in UTF-8, such as one with a quote that is never closed.
      ValueError: a column is missing, a case id or reason is empty, or a case id comes twice; the message has the line.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "artefacts.csv"
      >>> _ = path.write_text("case_id,reason\nexam_7,motion\n")
      >>> read_exclusions(path)
      {'exam_7': 'motion'}
    """
    try:
        return _read(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UnreadableFile(path, f"is no CSV in UTF-8 ({error})", "Save it as CSV in UTF-8.") from error


def exclude(case_id: Sequence[str], exclusions: Mapping[str, str], *, where: str = "exclusions") -> Exclusion:
    """Part the cases of a cohort into those that stay and those on a list.

    Args:
      case_id: ids of the cohort, in order.
      exclusions: case id to reason, as from `read_exclusions`.
      where: the file of the list, for the message.

    Raises:
      ValueError: an id on the list is none of the cohort's, or no case is left.

    Example:
      >>> exclude(["a", "b", "c"], {"b": "motion"})
      Exclusion(kept=(0, 2), excluded={'b': 'motion'})
    """
    known = set(case_id)
    unknown = [case for case in exclusions if case not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=3)
        raise ValueError(
            f"{where}: case {unknown[0]!r} is not in the cohort ({len(unknown)} of {len(exclusions)} are not)"
            f"{'; close ones: ' + ', '.join(map(repr, close)) if close else ''}. Correct the id, or take the line out."
        )
    kept = tuple(row for row, case in enumerate(case_id) if case not in exclusions)
    if not kept:
        raise ValueError(f"{where}: all {len(case_id)} cases are on the list; expected at least one to stay.")
    return Exclusion(kept, {case: exclusions[case] for case in case_id if case in exclusions})


def _read(path: str | os.PathLike[str]) -> dict[str, str]:
    excluded: dict[str, str] = {}
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        # Strict: else a quote that is never closed takes the cases below it for part of a reason.
        reader = csv.DictReader(file, restkey="further", restval="", strict=True)
        columns = reader.fieldnames or ()
        for column in ("case_id", "reason"):
            if column not in columns:
                raise ValueError(
                    f"{path}: no column {column!r}; it has {', '.join(map(repr, columns)) or 'none'}. Expected the "
                    "columns 'case_id' and 'reason'."
                )
        for row in reader:
            case, reason = row["case_id"].strip(), row["reason"].strip()
            place = f"{path}: line {reader.line_num}"
            if not case or not reason:
                raise ValueError(
                    f"{place}: case id {case!r}, reason {reason!r}; expected both. Say why it is left out."
                )
            if case in excluded:
                raise ValueError(f"{place}: case {case!r} stands in the list twice; keep one line.")
            excluded[case] = reason
    return excluded
