"""COCO's average precision and recall of boxes: this library against pycocotools, which gives the same numbers.

    python -m benchmarks.box_evaluation           # 5,000 images with 100 detections each

Both start from arrays or annotations in memory, match at ten overlaps and four sizes, and accumulate for three limits
of detections; reading files and building pycocotools' index are left out. The resampled average precision has no peer:
pycocotools would have to match every resample again; its time times the resamples is given for scale.
"""

import contextlib
import io
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.timing import (
    Agreement,
    Aim,
    Bystanders,
    Contender,
    Results,
    Row,
    Table,
    describe_run,
    find_peers,
    finish,
    parser,
    race,
    timing_cells,
    tune,
)
from fusion_jax.evaluation.detection import AveragePrecision, average_precision
from fusion_jax.evaluation.detection_matching import AREAS, OVERLAP_GRID, Matches, match_boxes
from fusion_jax.evaluation.froc import detection_statistics, make_detection_data
from fusion_jax.evaluation.resampling import bootstrap, make_design

PEER = "pycocotools"
OURS = "fusion_jax"
RESAMPLED = "fusion_jax, 200 resamples"
RESAMPLES = 200
CLASSES = 5
AIM = 10.0
TOLERANCE = 1e-9
PAUSE = 0.2
ONCE = 20.0
"""Seconds beyond which a contender is timed once."""


class Case(NamedTuple):
    """Images, and detections of each."""

    images: int
    detections: int

    @property
    def name(self) -> str:
        return f"{self.images:,} x {self.detections}"


CASES = (Case(500, 100), Case(5000, 10), Case(5000, 100))
QUICK_CASES = (Case(60, 20),)


class Boxes(NamedTuple):
    """Arguments of `match_boxes`."""

    truth_boxes: np.ndarray
    truth_case: np.ndarray
    truth_label: np.ndarray
    boxes: np.ndarray
    case: np.ndarray
    label: np.ndarray
    score: np.ndarray


def draw(case: Case) -> Boxes:
    """0 to 15 boxes an image of all sizes; half of the detections lie near a box, the others anywhere."""
    rng = np.random.default_rng([case.images, case.detections])

    def anywhere(count: int) -> np.ndarray:
        corner = rng.uniform(0, 400, (count, 2))
        return np.concatenate([corner, corner + np.exp(rng.uniform(np.log(12), np.log(220), (count, 2)))], axis=1)

    of_image = rng.integers(0, 16, case.images)
    truth_case = np.repeat(np.arange(case.images), of_image)
    truth, truth_label = anywhere(len(truth_case)), rng.integers(0, CLASSES, len(truth_case))
    found_case = np.repeat(np.arange(case.images), case.detections)
    count = len(found_case)
    near = (rng.random(count) < 0.5) & (of_image[found_case] > 0)
    first = (np.cumsum(of_image) - of_image)[found_case]
    partner = np.where(near, first + (rng.random(count) * of_image[found_case]).astype(int), 0)
    sides = np.tile(truth[partner, 2:] - truth[partner, :2], 2)
    found = np.where(near[:, None], truth[partner] + rng.normal(0, 0.1, (count, 4)) * sides, anywhere(count))
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
    label = np.where(near, truth_label[partner], rng.integers(0, CLASSES, count))
    return Boxes(truth, truth_case, truth_label, found, found_case, label, rng.random(count))


def ours(case: Case, boxes: Boxes) -> AveragePrecision:
    return average_precision(match_boxes(*boxes, cases=case.images, classes=CLASSES))


def peer_index(case: Case, boxes: Boxes) -> tuple[Any, Any]:
    """Truth and detections as pycocotools holds them."""
    from pycocotools.coco import COCO

    def of(corners: np.ndarray) -> list[float]:
        return [*corners[:2].tolist(), *(corners[2:] - corners[:2]).tolist()]

    truth: Any = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": image} for image in range(case.images)],
        "categories": [{"id": k, "name": str(k)} for k in range(CLASSES)],
        "annotations": [
            {"id": row + 1, "image_id": int(image), "category_id": int(k), "bbox": side, "iscrowd": 0}
            | {"area": side[2] * side[3]}
            for row, (image, k, side) in enumerate(
                zip(boxes.truth_case, boxes.truth_label, map(of, boxes.truth_boxes), strict=True)
            )
        ],
    }
    results = [
        {"image_id": int(image), "category_id": int(k), "bbox": of(corners), "score": float(score)}
        for image, k, corners, score in zip(boxes.case, boxes.label, boxes.boxes, boxes.score, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        return truth, truth.loadRes(results)


def peer(index: tuple[Any, Any]) -> Any:
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(*index, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval


class Bench:
    """Times and differences of every case."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.rows: list[Row] = []
        self.resampled: list[Row] = []
        self.agreements: list[Agreement] = []

    def measure(self, case: Case, *, compare: bool) -> None:
        boxes = draw(case)
        contenders = [Contender(OURS, "float64", lambda: ours(case, boxes))]
        if compare:
            index = peer_index(case, boxes)
            contenders.append(Contender(PEER, "float64", lambda: peer(index)))
        timings = race(contenders, self.rounds, pause=PAUSE, once=ONCE)
        for contender in contenders:
            self.rows.append({"images x detections": case.name} | timing_cells(contender, timings, [PEER]))
        if compare:
            found, wanted = timings[OURS].result, timings[PEER].result
            for what in ("precision", "recall"):
                difference = float(np.abs(np.nan_to_num(getattr(found, what), nan=-1) - wanted[what]).max())
                self.agreements.append(Agreement(f"{what}, {case.name}", difference, TOLERANCE))

    def resample(self, case: Case) -> None:
        """Precision at 21 overlaps, FROC and counts in every resample of the images."""
        boxes = draw(case)
        matches: Matches = match_boxes(
            *boxes, cases=case.images, classes=CLASSES, thresholds=OVERLAP_GRID, areas=AREAS[:1]
        )
        data, design = make_detection_data([matches]), make_design(rows=case.images)
        contender = Contender(
            RESAMPLED, "float32", lambda: bootstrap(detection_statistics, data, design, resamples=RESAMPLES)
        )
        timings = race([contender], min(self.rounds, 3), pause=PAUSE, once=ONCE)
        once = next(
            (row for row in self.rows if (row["images x detections"], row["method"]) == (case.name, PEER)), None
        )
        single = once["median, ms"] if once else None
        median = timings[RESAMPLED].median
        row: Row = {"images x detections": case.name} | timing_cells(contender, timings, [])
        row["ms a resample"] = 1e3 * median / RESAMPLES
        row[f"{PEER} again, times"] = single * RESAMPLES / (1e3 * median) if isinstance(single, float) else None
        self.resampled.append(row)

    def tables(self) -> list[Table]:
        setting = "Ten overlaps, sizes all, small, medium and large, 1, 10 and 100 detections of an image and class; "
        return [
            Table(
                "COCO's average precision and recall, 5 classes",
                self.rows,
                (f"{setting}0 to 15 boxes an image. vs X: how many times faster than X.",),
            ),
            Table(
                "Resampled: average precision at 21 overlaps, FROC, counts and image AUC",
                self.resampled,
                (f"{PEER} again, times: what matching and accumulating anew in every resample would take, over this.",),
            ),
        ]

    def aims(self, cases: Sequence[Case]) -> list[Aim]:
        name = cases[-1].name
        found = [row[f"vs {PEER}"] for row in self.rows if (row["images x detections"], row["method"]) == (name, OURS)]
        ratio = found[0] if found and isinstance(found[0], float) else None
        holds = None if ratio is None else ratio >= AIM
        return [Aim(f"at least {AIM:g} times faster than {PEER} at {name}", f"{ratio:.3g}" if ratio else "-", holds)]


def main(arguments: list[str] | None = None) -> int:
    chosen = parser(__doc__).parse_args(arguments)
    settings = tune(chosen)
    # A compilation that comes from a cache would make first calls look quick.
    jax.config.update("jax_enable_compilation_cache", False)
    rounds = 2 if chosen.quick else chosen.rounds
    peers, missing = find_peers(PEER)
    header = describe_run(missing, rounds) | {"settings": settings}
    bench, bystanders = Bench(rounds), Bystanders()
    cases = QUICK_CASES if chosen.quick else CASES
    for case in cases:
        bench.measure(case, compare=PEER in peers)
    bench.resample(cases[0])
    header["other work"] = bystanders.note()
    aims = [] if chosen.quick else bystanders.judge(bench.aims(cases))
    return finish(Results(header, bench.tables(), aims, bench.agreements), chosen.out)


if __name__ == "__main__":
    sys.exit(main())
