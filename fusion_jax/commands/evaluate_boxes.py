"""`fusion-jax evaluate-boxes`: how well do detectors find what readers marked, by how much, and which one better?"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from fusion_jax.commands._evaluate_boxes.measure import Results

__all__ = ["Config", "run"]


@dataclass(frozen=True)
class Config:
    """Judge detections against true boxes: average precision, FROC and counts, with intervals over patients.

    Writes report.html, metrics.csv (every number with its interval), summary.csv, .md and .tex, metrics.json,
    curves.csv and figures/ to the folder OUT; earlier results of this command are replaced, nothing else is touched.

    Tables have the columns case_id, x0, y0, x1, y1, class; detections also score; patient_id (of the truth) and model
    are optional. A case without any box has one row in the truth whose box is empty: false detections on normal images
    count. COCO's JSON is read, too.

    Example: fusion-jax evaluate-boxes fused.csv image_only.csv --truth boxes.csv --out results/boxes

    Attributes:
      detections: one file per model, or a column model.
      truth: what is there to be found.
      out: folder of the results.
      cases: table with case_id, and patient_id if there are patients, of all images that were looked at, where the
        truth does not list those without a box.
      classes: names, for classes that no true box has. Default: those of the truth.
      overlap: intersection over union (iou); over the detection's own box (iobb, which rewards small boxes, so IoU
        stands beside it); or both, IoU first.
      threshold: overlap of a hit, a multiple of .05, for FROC, counts and curves.
      min_score: detections below are left out of everything. Default: none.
      score: detections of this score or more are counted as TP or FP. Default: all that are left.
      max_detections: most detections of an image and class.
      sides: sides in pixels of the squares that divide small from medium, and medium from large boxes.
      resamples: of the patients.
      seed: of the resamples.
      compilation_cache: keep compiled programs for the next run, in a private folder of the user's cache.
    """

    detections: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DETECTIONS...", help_behavior_hint="(required)")
    ]
    truth: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("results/evaluate-boxes")
    cases: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    classes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CLASS...", help_behavior_hint="")] = ()
    overlap: Literal["iou", "iobb", "both"] = "iou"
    threshold: float = 0.5
    min_score: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")] = None
    score: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")] = None
    max_detections: int = 100
    sides: tuple[float, float] = (32.0, 96.0)
    resamples: int = 5000
    seed: int = 0
    compilation_cache: bool = True


def run(config: Config) -> int:
    """Read, match, resample, write the results and print a short table.

    Raises:
      ValueError: input that cannot be used; the message says what was found where, what was expected and what to do.
      OSError: a file that cannot be read or written.
    """
    from fusion_jax.commands._shared.screen import progress_bar

    _check_options(config)
    with progress_bar("reading the boxes") as advance:
        from fusion_jax.commands._evaluate_boxes.read import read_boxes

        truth, models, notes = read_boxes(config)
        config.out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
        advance(1, 4, "matching")
        from fusion_jax.commands._evaluate_boxes.measure import match_models, measure

        entries = match_models(truth, models, config)
        advance(2, 4, f"resampling {config.resamples} times")
        results = measure(truth, models, entries, notes, config)
        advance(3, 4, "writing the report")
        from fusion_jax.commands._evaluate_boxes.report import write_results

        report = write_results(results)
    _print(results)
    print(f"\nReport: {report}")
    return 0


def _check_options(config: Config) -> None:
    if config.out.exists() and not config.out.is_dir():
        raise ValueError(f"--out {config.out} is a file; expected a folder, or a name for a new one.")
    steps = 20 * config.threshold
    if not 0 < config.threshold <= 1 or abs(steps - round(steps)) > 1e-9:
        raise ValueError(f"--threshold is {config.threshold:g}; expected a multiple of 0.05 above 0, up to 1.")
    if not 0 < config.sides[0] < config.sides[1]:
        raise ValueError(f"--sides is {config.sides[0]:g} {config.sides[1]:g}; expected two ascending sides in pixels.")
    for option, value, least in (
        ("--max-detections", config.max_detections, 1),
        # Two are needed for a standard deviation.
        ("--resamples", config.resamples, 2),
        ("--seed", config.seed, 0),
    ):
        if value < least:
            raise ValueError(f"{option} is {value}; expected {least} or more.")


def _print(results: "Results") -> None:
    from rich.console import Console
    from rich.table import Table

    from fusion_jax.commands._evaluate_boxes.measure import ALL, MEASURES, title

    names = results.headline
    table = Table(title=f"{results.counts_in_words}, {MEASURES[results.measures[0]]}", title_justify="left")
    # Names that leave room for five numbers are not torn.
    table.add_column("model", overflow="fold", no_wrap=max(map(len, results.models)) <= 16)
    for name in names:
        table.add_column(title(name, results), justify="right", overflow="fold")
    for model in results.models:
        table.add_row(model, *(results.shown(model, results.measures[0], ALL, name) for name in names))
    table.caption = f"95 % BCa intervals, {results.config.resamples} resamples of the {results.unit}"
    console = Console()
    console.print(table)
    for line in results.findings:
        console.print(line, highlight=False)
