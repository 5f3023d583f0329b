"""What the training of detectors says on the screen: what is going to be done, and how far it is."""

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from fusion_jax.detection.recipe import RECALL_WARNING
from fusion_jax.detection.study import DetectorPlan, DetectorStudy
from fusion_jax.training.cross_validation import Task, TaskProgress
from fusion_jax.wording import counted, listed

__all__ = ["print_anchors", "print_plan", "told", "training_bar"]


def print_plan(made: DetectorPlan) -> None:
    """What is trained, on whom, and how much there is to train."""
    cohort = made.cohort
    boxes = cohort.boxes or ()
    counts = [sum(int((own.classes == code).sum()) for own in boxes) for code in range(len(cohort.box_classes))]
    classes = [f"{count} {name}" for name, count in zip(cohort.box_classes, counts, strict=True)]
    empty = sum(not len(own.corners) for own in boxes)
    patients = len(set(cohort.patient_id.tolist()))
    print(
        f"{cohort.name}: {counted(len(cohort), 'image')} of {counted(patients, 'patient')}, {empty} without a box. "
        f"Boxes: {listed(classes, 8)}."
    )
    for name, recipe in made.recipes.items():
        named = "" if recipe.name == name else f" ({recipe.name})"
        columns = listed(recipe.features or cohort.columns("input"), 12)
        print(f"  {name}{named}: " + (f"image + {columns}" if recipe.reads_clinical else "image"))
    splits = made.splits.splits
    if len(splits) == 1:
        parts = (f"{len(getattr(splits[0], part))} {part}" for part in ("train", "validation", "test"))
        print(f"Cases: {', '.join(parts)}.")
    times = zip((len(splits), len(made.seeds), len(made.models)), ("split", "seed", "model"), strict=True)
    print(
        f"{' x '.join(counted(count, word) for count, word in times)}: {counted(len(made.tasks), 'training')}, "
        f"{len(made.waiting)} to do. Folder: {made.folder}"
    )


def print_anchors(study: DetectorStudy) -> None:
    """What part of the training boxes the anchors of each model reach; worker processes do not tell it themselves."""
    for name in dict.fromkeys(task.model for task in study.done):
        recall = [study.anchors(task)["recall"] for task in study.done if task.model == name]
        low, high = f"{min(recall):.0%}", f"{max(recall):.0%}"
        text = f"{name}: anchors reach {low if low == high else f'{low} to {high}'} of the training boxes at IoU 0.5"
        print(f"{text}." if min(recall) >= RECALL_WARNING else f"Warning: {text}; the others are seldom found.")


@contextmanager
def told() -> Generator[None]:
    """What detection logs while it trains, such as the part of the boxes that anchors reach, goes to the screen."""
    log = logging.getLogger("fusion_jax.detection")
    level, handler = log.level, _Printed()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class _Printed(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.seen:  # of the models of a fold, one is enough
            self.seen.add(text)
            print(f"Warning: {text}" if record.levelno >= logging.WARNING else text)


@contextmanager
def training_bar(
    made: DetectorPlan,
) -> Generator[tuple[Callable[[TaskProgress], None], Callable[[Task, Any], None]]]:
    """A bar over the epochs of all trainings, with loss and best validation AP of the one that runs."""
    from fusion_jax.commands._shared.screen import progress_bar

    epochs = {name: recipe.epochs for name, recipe in made.recipes.items()}
    total = sum(epochs[task.model] for task in made.tasks)
    ended = sum(epochs[task.model] for task in made.tasks if task not in made.waiting)

    with progress_bar("training") as bar:

        def report(progress: TaskProgress) -> None:
            nonlocal ended
            if progress.task is None:
                return
            ended += epochs[progress.task.model]
            bar(ended, total, f"training, last {progress.task.model} in {progress.seconds:.0f} s")
            if progress.message:
                print(f"{progress.task.model}, fold {progress.task.fold} failed: {progress.message}")

        def running(task: Task, progress: Any) -> None:
            loss = "" if progress.loss is None else f", loss {progress.loss:.2f}"
            best = "" if progress.metric is None else f", best AP {progress.metric:.2f}"
            bar(
                ended + progress.epoch, total, f"{task.model}, fold {task.fold}, epoch {progress.epoch + 1}{loss}{best}"
            )

        yield report, running
