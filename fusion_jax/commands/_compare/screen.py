"""What a comparison says on the screen: what it is going to do, how far it is, and which models there are."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import numpy as np

from fusion_jax.models.comparison import Plan
from fusion_jax.models.target import survival_of
from fusion_jax.training.cross_validation import TaskProgress
from fusion_jax.wording import counted, listed

__all__ = ["print_models", "print_plan", "training_bar"]


def print_plan(made: Plan) -> None:
    """What is compared, on whom, and how much there is to train."""
    cohort = made.cohort
    patients = len(set(cohort.patient_id.tolist()))
    classes = ""
    if made.target.kind == "label":
        sizes = [f"{int((cohort.label == code).sum())} {name}" for code, name in enumerate(cohort.classes)]
        classes = f", {made.target.column}: {listed(sizes, 6)}"
    elif made.target.column:
        events = survival_of(cohort, np.arange(len(cohort))).event
        classes = f", survival with {counted(int(events.sum()), 'event')}"
    splits = made.splits.splits
    repeats = len({split.repeat for split in splits})
    print(f"{cohort.name}: {counted(len(cohort), 'case')} of {counted(patients, 'patient')}{classes}.")
    for model, read in made.sources.items():
        recipe = made.choices[model].recipe
        named = "" if recipe == model else f" ({recipe})"
        print(f"  {model}{named}: {' + '.join(read)}")
    counts = (len(splits) // repeats, repeats, len(made.seeds), len(made.choices))
    times = zip(counts, ("fold", "repeat", "seed", "model"), strict=True)
    print(
        f"{' x '.join(counted(count, word) for count, word in times)}: {counted(len(made.tasks), 'training')}, "
        f"{len(made.waiting)} to do. Folder: {made.folder}"
    )
    for group in made.copies[:3]:
        print(f"Cases {listed(group)} hold the same image or nearly so; they stay in one fold.")
    if len(made.copies) > 3:
        print(f"{len(made.copies) - 3} more such groups are in {made.folder / 'cohort_check.json'}.")
    for remark in made.remarks:
        print(f"Warning: {remark}")


@contextmanager
def training_bar() -> Generator[Callable[[TaskProgress], None]]:
    """A bar over the trainings, and a line with the time that they will take after the first ones."""
    from fusion_jax.commands._shared.screen import progress_bar

    begin = time.monotonic()
    before: list[int] = []
    told = False

    with progress_bar("training") as bar:

        def report(progress: TaskProgress) -> None:
            nonlocal told
            if progress.task is None:
                before.append(progress.done + progress.failed)
            ended = progress.done + progress.failed
            name = "" if progress.task is None else f", last {progress.task.model} in {progress.seconds:.0f} s"
            bar(ended, progress.total, f"training{name}")
            if progress.message and progress.task is not None:
                print(f"{progress.task.model}, fold {progress.task.fold} failed: {progress.message}")
            left, fresh = progress.total - ended, ended - (before[0] if before else 0)
            if not told and fresh and left and progress.task is not None and _all_models(progress, fresh):
                told = True
                print(f"About {_duration((time.monotonic() - begin) / fresh * left)} left to train.")

        seen: set[str] = set()

        def _all_models(progress: TaskProgress, fresh: int) -> bool:
            """Whether some model has come round again, so that the mean is of all of them."""
            again = progress.task is not None and progress.task.model in seen
            if progress.task is not None:
                seen.add(progress.task.model)
            return again or fresh >= progress.total // 2

        yield report


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def print_models() -> None:
    """All recipes with their arguments."""
    from rich.console import Console
    from rich.table import Table

    from fusion_jax.models.registry import describe

    table = Table(title="Recipes", title_justify="left")
    for column in ("name", "kind", "what it is"):
        table.add_column(column, overflow="fold")
    kinds: dict[str, list[str]] = {}
    for one in describe():
        table.add_row(one.name, one.kind, one.text)
        kinds.setdefault(one.kind, list(one.arguments))
    table.add_row("SOURCE-only", "deep", "a network of one source of the cohort")
    console = Console()
    console.print(table)
    for kind, arguments in kinds.items():
        console.print(f"Arguments of {kind} models: {', '.join(arguments)}.", highlight=False)
