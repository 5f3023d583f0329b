"""Progress on the screen, and where results go."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

__all__ = ["Advance", "checked_folder", "file_name", "progress_bar", "results_folder"]


@runtime_checkable
class Advance(Protocol):
    """Moves a progress bar: done, of how many, and what is being done now if that has changed."""

    def __call__(self, done: int, total: int, doing: str | None = None) -> None: ...


@contextmanager
def progress_bar(what: str) -> Generator[Advance]:
    """A bar on standard error that says what is done and how long is left, and is gone at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    # In a log, where nothing can be drawn over, the bar would leave an empty line.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)

        def advance(done: int, total: int, doing: str | None = None) -> None:
            progress.update(task, completed=done, total=total, description=doing)

        yield advance


def results_folder(name: str, out: Path | None) -> Path:
    """Where a command about the cohort `name` writes: `out`, or `results/cohort/NAME`.

    Raises:
      ValueError: `out` is a file.
    """
    return Path("results") / "cohort" / file_name(name) if out is None else checked_folder(out)


def checked_folder(out: Path) -> Path:
    """The folder that `--out` names, which need not exist.

    Raises:
      ValueError: it is a file.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; expected a folder, or a name for a new one.")
    return out


def file_name(name: str) -> str:
    """The name of a cohort, source or column as that of a file."""
    kept = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name).strip(".")
    return kept or "cohort"
