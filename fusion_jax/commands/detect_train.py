"""`fusion-jax detect train`: detectors with and without clinical data on a researcher's own boxes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

__all__ = ["Config", "run"]

OPTIONAL = tyro.conf.arg(metavar="VALUE", help_behavior_hint="")


@dataclass(frozen=True)
class Config:
    """Train detectors of findings in images, with or without the patient's clinical data, and judge them.

    Patients are divided into training, validation and test, or into folds; the validation patients decide on the epoch.
    Writes detections/ (of the tested patients, a file a model), truth.csv, evaluation/ with the report of
    evaluate-boxes, splits.json and a folder for every training (tasks/) to the folder OUT. Called again with the same
    OUT it goes on where it was stopped; finished trainings are never repeated.

    Models: mask-rcnn reads the image alone; msf-net-1d, msf-net-3d and mdf-net add clinical data to regions, to feature
    maps, and to both; retinanet, retinanet-1d, retinanet-3d and retinanet-dual are the same with one stage.

    Examples:
      fusion-jax detect train data/chest --models mask-rcnn mdf-net --anchors fit --folds 5
      fusion-jax detect train --coco train.json --images images --table vitals.csv --models mdf-net

    Attributes:
      cohort: folder with a cohort.toml that names a table of boxes, or the name of a collection.
      coco: annotations as COCO's JSON instead.
      images: folder of their images. Default: that of the annotations.
      table: clinical table of these images, one row an image (column case_id, image_id or file_name).
      inputs: its columns that a model may read. Default: all but those of image and patient.
      models: detectors, as NAME, NAME{"argument": value}, or LABEL=NAME{...} to give it another name in the tables.
        Default: mdf-net.
      config: JSON file with "models", label to {"recipe": NAME, "arguments": {...}}, and "settings", arguments that all
        models share. Options go before these settings, and the arguments of a model before both.
      out: folder of the results. Default: results/detect/ and the name of the cohort.
      folds: of a cross-validation over patients. Default: patients are divided once.
      validation: fraction of the patients whose AP decides on the epoch; 0 trains to the last epoch.
      test: fraction of the patients that are tested; folds say it themselves.
      split: column of the table that says of every case train, validation or test.
      split_seed: of the draw.
      seeds: of training; every seed is judged as a model of its own.
      preset: quick looks at the data in 5 epochs; its figures are no results.
      features: clinical columns to read. Default: all inputs.
      image_size: rows and columns that images are brought to, or one number for both (512).
      backbone: of the images and of the clinical map, such as mobilenet-v3-small or resnet-50.
      anchors: published, or fit to the boxes of the training patients.
      image: source of the images, where the cohort has several.
      epochs: at most (100), for all models; likewise the next ones.
      batch_size: images of a step (4).
      learning_rate: of the optimiser (0.001).
      patience: epochs without a better validation AP before training stops.
      objective: how the losses become one.
      augment: mirror half of the images in training, with their boxes (flip), or not; lungs then change sides.
      clinical_values: scaled by the training patients (encoded), or in their units (native).
      missing: gaps filled by the mean of the training patients (mean), or masked.
      overlap: of a hit on the validation patients, over the union (iou) or the detection's box (iobb).
      precision: of the computation; bfloat16 on accelerators.
      workers: processes that train side by side; 1 trains in this process.
      dask: address of the scheduler of a Dask cluster that trains instead, such as tcp://10.0.0.1:8786.
      resamples: of the patients, for intervals.
      compilation_cache: keep compiled programs for the next run, in a private folder of the user's cache.
    """

    cohort: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="COHORT", help_behavior_hint="")] = ""
    coco: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    images: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    table: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    inputs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN...", help_behavior_hint="")] = ()
    models: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="MODEL...", help_behavior_hint="", aliases=["--model"])
    ] = ()
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    folds: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    validation: float = 0.15
    test: float = 0.15
    split: Annotated[str | None, tyro.conf.arg(metavar="COLUMN", help_behavior_hint="")] = None
    split_seed: int = 0
    seeds: tuple[int, ...] = (0,)
    preset: Literal["standard", "quick"] = "standard"
    features: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN...", help_behavior_hint="")] = ()
    image_size: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT...", help_behavior_hint="")] = ()
    backbone: Annotated[str | None, OPTIONAL] = None
    anchors: Annotated[
        Literal["published", "fit"] | None, tyro.conf.arg(metavar="published|fit", help_behavior_hint="")
    ] = None
    image: Annotated[str | None, tyro.conf.arg(metavar="SOURCE", help_behavior_hint="")] = None
    epochs: Annotated[int | None, OPTIONAL] = None
    batch_size: Annotated[int | None, OPTIONAL] = None
    learning_rate: Annotated[float | None, OPTIONAL] = None
    patience: Annotated[int | None, OPTIONAL] = None
    objective: Annotated[
        Literal["homoscedastic", "homoscedastic-paper", "sum"] | None,
        tyro.conf.arg(metavar="homoscedastic|homoscedastic-paper|sum", help_behavior_hint=""),
    ] = None
    augment: Annotated[Literal["flip", "none"] | None, tyro.conf.arg(metavar="flip|none", help_behavior_hint="")] = None
    clinical_values: Annotated[
        Literal["encoded", "native"] | None, tyro.conf.arg(metavar="encoded|native", help_behavior_hint="")
    ] = None
    missing: Annotated[Literal["mean", "mask"] | None, tyro.conf.arg(metavar="mean|mask", help_behavior_hint="")] = None
    overlap: Annotated[Literal["iou", "iobb"] | None, tyro.conf.arg(metavar="iou|iobb", help_behavior_hint="")] = None
    precision: Annotated[
        Literal["float32", "bfloat16"] | None, tyro.conf.arg(metavar="float32|bfloat16", help_behavior_hint="")
    ] = None
    workers: int = 1
    dask: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS", help_behavior_hint="")] = None
    resamples: int = 5000
    compilation_cache: bool = True


def run(config: Config) -> int:
    """Train, judge, write the report and print a short table.

    Returns:
      0; 1 where some trainings failed, and the others were judged.

    Raises:
      ValueError: input that cannot be used; the message says what was found where, what was expected and what to do.
      OSError: a file that cannot be read or written.
    """
    from fusion_jax.commands._detect.asked import address_of, default_folder, fractions_of, read_detectors
    from fusion_jax.commands._shared.models import executor
    from fusion_jax.commands._shared.screen import checked_folder

    address = address_of(
        config.cohort, coco=config.coco, images=config.images, table=config.table, inputs=config.inputs
    )
    models, settings = read_detectors(config)
    fractions = fractions_of(config)
    if config.resamples < 2:
        raise ValueError(f"--resamples is {config.resamples}; expected 2 or more.")
    factory = executor(config.workers, config.dask)
    out = checked_folder(config.out or default_folder(config))
    from fusion_jax.commands._detect.screen import print_anchors, print_plan, told, training_bar
    from fusion_jax.detection.study import carry_out_detectors, plan_detectors

    made = plan_detectors(
        address,
        models,
        out=out,
        folds=config.folds,
        seeds=config.seeds,
        split_seed=config.split_seed,
        fractions=fractions,
        column=config.split,
        settings=settings,
    )
    _check_tested(made)
    print_plan(made)
    with told(), training_bar(made) as (report, progress):
        study = carry_out_detectors(made, executor_factory=factory, report=report, progress=progress)
    if factory is not None:
        print_anchors(study)
    for one in study.failed:
        print(f"Failed: {one.task.model}, fold {one.task.fold}, seed {one.task.seed}: {one.message}")
    from fusion_jax.commands import evaluate_boxes

    judged = evaluate_boxes.Config(
        detections=study.detection_files,
        truth=out / "truth.csv",
        out=out / "evaluation",
        classes=made.cohort.box_classes,
        overlap="both",
        resamples=config.resamples,
    )
    evaluate_boxes.run(judged)
    first = study.plan.task_folder(study.done[0])
    print(f"On other images: fusion-jax detect predict {first} COHORT --out detections.csv")
    return 1 if study.failed else 0


def _check_tested(made: Any) -> None:
    """Refuse what the report would refuse once everything is trained.

    Raises:
      ValueError: nobody is tested, no box is there to be found, or no two patients alike are there to draw from.
    """
    import numpy as np

    from fusion_jax.evaluation.resampling import make_design

    cohort = made.cohort
    tested = {case for split in made.splits.splits for case in split.test}
    rows = [row for row, case in enumerate(cohort.case_id) if case in tested]
    holds = np.array([len(cohort.boxes[row].corners) > 0 for row in rows], np.int64)
    patients = [str(cohort.patient_id[row]) for row in rows]
    if not holds.any() or np.bincount(make_design(holds, patients).stratum).max() < 2:
        raise ValueError(
            f"{cohort.name}: {len(set(patients))} patients are tested, {int(holds.sum())} of their {len(rows)} images "
            "have a box; expected two patients with a box or more, so that there is something to find and an interval "
            "around it. Test more of them: --test, --folds or the column of --split."
        )
