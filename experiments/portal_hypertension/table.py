"""The ten rows of Table 1: models on one and the same Monte-Carlo splits, and what they come to.

Splits overlap, so that a patient is tested in some of them and not in others. Two figures follow: the paper's, the mean
over the splits of AUC and accuracy, with intervals over patients; and, for the question whether fusion helped, the
evaluation of the package on one prediction a patient, the mean over the splits that tested the patient.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from experiments.portal_hypertension.blocks import block_sizes
from experiments.portal_hypertension.claim import LEVEL, Study, bootstrapped_mean_auc, mean_auc
from experiments.portal_hypertension.config import PAPER_GAMMAS
from fusion_jax.data import Cohort, Splits
from fusion_jax.evaluation.assembly import Evaluation, evaluate
from fusion_jax.evaluation.panel import make_panel
from fusion_jax.evaluation.protocol import Protocol
from fusion_jax.models.comparison import Plan, plan
from fusion_jax.models.task import run_task
from fusion_jax.records import write_text
from fusion_jax.records.predictions import check_predictions
from fusion_jax.training.cross_validation import Task, TaskProgress, cross_validate, merge_predictions

__all__ = ["PAPER", "PRIMARY", "Row", "Table1", "judge_heads", "rows_of_table", "run_table", "trained_folders"]

PAPER: Mapping[str, tuple[float, float]] = {
    "image only": (0.60, 0.62),
    "markers only": (0.59, 0.60),
    "PE markers": (0.58, 0.60),
    "image + markers": (0.60, 0.62),
    "image + PE, gamma 0.09": (0.64, 0.60),
    "image + PE, gamma 0.19": (0.61, 0.58),
    "image + PE, gamma 0.38": (0.61, 0.61),
    "image + PE, gamma 1": (0.74, 0.71),
    "image + PE, gamma 1.5": (0.70, 0.69),
    "image + PE, gamma 3": (0.63, 0.57),
}
"""AUC and accuracy of Wang et al. 2023, Table 1."""

SINGLES = ("image only", "markers only", "PE markers")

PRIMARY = ("image + markers", "image + PE, gamma 1")
"""Fused models of the question whether fusion helped, fixed beforehand; the other sizes belong to the claim."""


class Row(NamedTuple):
    """A row of Table 1.

    Attributes:
      model: its name.
      size: d2*, 0 without markers.
      gamma: d2* / d1, NaN for one source.
      auc, low, high: mean over the splits, with its interval over patients.
      accuracy: mean over the splits, at a probability of one half.
      sd: of the AUC over the splits.
      gap: of energy between markers and image, mean over the tested patients and splits; NaN for one source.
    """

    model: str
    size: int
    gamma: float
    auc: float
    low: float
    high: float
    accuracy: float
    sd: float
    gap: float


class Table1(NamedTuple):
    """What the ten models came to.

    Attributes:
      rows: in the paper's order.
      evaluation: of one prediction a patient, of single sources and the primary fused models.
      plan: of the trainings.
      failed: message of every training that failed, by model.
      predictions: path of the table that was evaluated.
    """

    rows: tuple[Row, ...]
    evaluation: Evaluation
    plan: Plan
    failed: Mapping[str, str]
    predictions: Path


def rows_of_table(
    cohort: Cohort, image: str, width: int, encoder: Mapping[str, Any], training: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Recipe and arguments of every row.

    Args:
      cohort: with the source `clinical`.
      image: source of the images, or of their features.
      width: number of image features, d1.
      encoder: of the images; vectors pass through.
      training: arguments that all rows share.
    """
    vectors = cohort.sources[image].kind == "array"
    seen: dict[str, Any] = {image: {"name": "pass-through"} if vectors else dict(encoder)}
    count = _markers(cohort)
    sizes = dict(zip(PAPER_GAMMAS, block_sizes(PAPER_GAMMAS, width, count), strict=True))

    def encoded(gamma: float) -> dict[str, Any]:
        return {"clinical": {"name": "positional", "size": sizes[gamma]}}

    raw = {"clinical": "pass-through"}
    alone = {**training, "inputs": ["clinical"]}
    native = {"clinical_values": "native"}
    rows: dict[str, dict[str, Any]] = {
        "image only": {"recipe": f"{image}-only", "arguments": {**training, "encoders": seen}},
        "markers only": {"recipe": "clinical-only", "arguments": {**alone, "encoders": raw}},
        "PE markers": {"recipe": "clinical-only", "arguments": {**alone, **native, "encoders": encoded(1.0)}},
        "image + markers": {"recipe": "concatenate", "arguments": {**training, "encoders": seen | raw}},
    }
    for name, gamma in zip(list(PAPER)[4:], PAPER_GAMMAS, strict=True):
        arguments = {**training, **native, "encoders": seen | encoded(gamma)}
        rows[name] = {"recipe": "concatenate", "arguments": arguments}
    return rows


def run_table(
    address: Mapping[str, Any],
    models: Mapping[str, Mapping[str, Any]],
    out: Path,
    splits: Callable[[Cohort], Splits],
    *,
    width: int,
    singles: Sequence[str] = SINGLES,
    resamples: int = 2000,
    seed: int = 0,
    report: Callable[[TaskProgress], None] | None = None,
) -> Table1:
    """Train what is not trained yet, and judge.

    Args:
      address: of the cohort, see `fusion_jax.models.comparison.compare`.
      models: from `rows_of_table`, all of them or some.
      out: folder of the trainings.
      splits: draws the splits.
      width: number of image features, d1.
      singles: models of one source.
      resamples: of the patients.
      seed: of trainings and resamples.
      report: told about every training.
    """
    made = plan(address, dict(models), out=out, draw=splits, seeds=(seed,), copies=False)
    config = {
        "cohort": made.address,
        "fingerprint": made.cohort.fingerprint,
        "splits_hash": made.splits.hash,
        "splits": str((out / "splits.json").resolve()),
        "models": {name: choice._asdict() for name, choice in made.choices.items()},
    }
    done = cross_validate(made.tasks, run_task, root=out / "tasks", config=config, report=report)
    failed = {one.task.model: one.message for one in done.failed}
    names = [name for name in models if name not in failed]
    if not names:
        raise ValueError(f"{out}: no model could be trained; the first error: {next(iter(failed.values()))}")
    merged: Any = merge_predictions(out / "tasks", names)
    tested = merged[merged["split"] == "test"]
    scores, part = _by_split(tested, names, made.cohort, len(made.splits.splits))
    label = np.asarray(made.cohort.label)
    areas = mean_auc(scores, label, part)
    drawn = bootstrapped_mean_auc(scores, label, part, resamples=resamples, seed=seed)
    ends = np.nanquantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    right = ((scores >= 0.5) == (label == 1)) & part
    accuracy = (right.sum(axis=2) / part.sum(axis=1)).mean(axis=1)
    rows = []
    for index, name in enumerate(names):
        size = _size(models[name], made.cohort)
        both = len(made.sources[name]) > 1
        rows.append(
            Row(
                name,
                size,
                size / width if both else float("nan"),
                float(areas[index].mean()),
                float(ends[0, index]),
                float(ends[1, index]),
                float(accuracy[index]),
                float(areas[index].std(ddof=1)) if areas.shape[1] > 1 else float("nan"),
                _energy_gap(made, name) if both else float("nan"),
            )
        )
    path = out / "predictions_mean.csv"
    kept = tuple(name for name in singles if name in names)
    fused = [name for name in PRIMARY if name in names] or [name for name in names if name not in kept]
    table = _pooled(tested[tested["model"].isin([*kept, *fused])])
    write_text(path, table.to_csv(index=False, lineterminator="\n"))
    positive = made.target.classes[1]
    panel = make_panel(check_predictions({str(path): table}, positive=positive))
    judged = Protocol(singles=kept if fused else (), resamples=resamples, seed=seed, curves=False)
    return Table1(tuple(rows), evaluate(panel, judged), made, failed, path)


def judge_heads(study: Study, cohort: Cohort, out: Path, *, resamples: int, seed: int) -> Evaluation:
    """The question whether fusion helped, of exact heads: the same evaluation of one prediction a patient.

    Args:
      study: of exact heads.
      cohort: of the study.
      out: path of the table of predictions that is written.
      resamples: of the patients.
      seed: of the resamples.
    """
    import pandas as pd

    rows = {
        "image only": "image",
        "markers only": "markers",
        "image + markers": ("raw", study.nearest),
        "image + PE, gamma 1": ("positional", study.nearest),
    }
    counts = study.test.sum(axis=0)
    tested = np.flatnonzero(counts)
    parts = []
    for name, model in rows.items():
        chances = 1 / (1 + np.exp(-study.logits[study.row(model)].astype(np.float64)))
        mean = (chances * study.test).sum(axis=0)[tested] / counts[tested]
        parts.append(
            pd.DataFrame(
                {
                    "model": name,
                    "case_id": [cohort.case_id[row] for row in tested],
                    "patient_id": [str(cohort.patient_id[row]) for row in tested],
                    "label": [cohort.classes[study.label[row]] for row in tested],
                    "score": mean,
                    "split": "test",
                }
            )
        )
    table: Any = pd.concat(parts, ignore_index=True)
    write_text(out, table.to_csv(index=False, lineterminator="\n"))
    panel = make_panel(check_predictions({str(out): table}, positive=cohort.classes[1]))
    singles = ("image only", "markers only")
    return evaluate(panel, Protocol(singles=singles, resamples=resamples, seed=seed, curves=False))


def _by_split(
    tested: Any, names: Sequence[str], cohort: Cohort, splits: int
) -> tuple[Float[np.ndarray, "m s n"], Bool[np.ndarray, "s n"]]:
    """Scores of every model in every split, and who was tested in it."""
    place = {case: row for row, case in enumerate(cohort.case_id)}
    scores = np.zeros((len(names), splits, len(cohort)))
    part = np.zeros((splits, len(cohort)), bool)
    rows = tested["case_id"].map(place).to_numpy()
    models = tested["model"].map({name: index for index, name in enumerate(names)}).to_numpy()
    repeats = tested["repeat"].astype(int).to_numpy()
    scores[models, repeats, rows] = tested["score"].to_numpy(float)
    part[repeats, rows] = True
    return scores, part


def _pooled(tested: Any) -> Any:
    """One prediction a model and patient: the mean over the splits that tested the patient."""
    keys = ["model", "case_id", "patient_id", "label"]
    found = tested.assign(score=tested["score"].astype(float))
    return found.groupby(keys, sort=False, as_index=False)["score"].mean().assign(split="test")


def _markers(cohort: Cohort) -> int:
    if cohort.sources["clinical"].kind == "table":
        return len(cohort.columns("input"))
    return len(cohort.sources["clinical"][0])


def _size(model: Mapping[str, Any], cohort: Cohort) -> int:
    own = model["arguments"].get("encoders", {}).get("clinical")
    if own is None:
        return 0
    return int(own["size"]) if isinstance(own, Mapping) else _markers(cohort)


def _energy_gap(made: Plan, name: str) -> float:
    """Mean pooled energy gap of the markers over the image, over the tested patients of all splits."""
    import pandas as pd

    found = []
    for task in made.tasks:
        path = made.task_folder(task) / "quality_cases.csv"
        if task.model == name and path.exists():
            table = pd.read_csv(path)
            found += [table[column].mean() for column in table.columns if column.startswith("energy_gap/")]
    return float(np.mean(found)) if found else float("nan")


def trained_folders(table: Table1, model: str) -> dict[int, Path]:
    """Folder of the trained model in every split, by repeat."""
    return {task.repeat: table.plan.task_folder(Task(*task)) for task in table.plan.tasks if task.model == model}
