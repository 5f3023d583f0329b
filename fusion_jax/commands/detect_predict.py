"""`fusion-jax detect predict`: a trained detector on new images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

__all__ = ["Config", "run"]


@dataclass(frozen=True)
class Config:
    """Find what a trained detector knows in the images of a cohort.

    Images may have any size; boxes come in their pixels. True boxes are not needed, and not looked at. Cases without an
    image are left out, with a warning. The table, or with --coco COCO's list of results, can be judged by
    evaluate-boxes.

    Examples:
      fusion-jax detect predict results/detect/chest/tasks/mdf-net/r0_f0_s0 data/new --out found.csv
      fusion-jax detect predict results/detect/chest --coco new.json --images new --table vitals.csv --out found.json

    Attributes:
      run: folder of one training, or of a `detect train` with one training.
      cohort: folder with a cohort.toml or shards, or the name of a collection.
      coco: images as COCO's JSON instead; annotations and categories may be empty.
      images: folder of these images. Default: that of the JSON.
      table: clinical table of these images, one row an image (column case_id, image_id or file_name).
      out: the detections, a CSV table, or COCO's results where the name ends in .json.
      masks: write masks as well, into COCO's results.
      min_score: detections below are left out; the detector itself leaves out those below 0.05.
      compilation_cache: keep compiled programs for the next run, in a private folder of the user's cache.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    cohort: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="COHORT", help_behavior_hint="")] = ""
    coco: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    images: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    table: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("detections.csv")
    masks: bool = False
    min_score: float = 0.0
    compilation_cache: bool = True


def run(config: Config) -> int:
    """Detect and write the table.

    Raises:
      ValueError: input that cannot be used; the message says what was found where, what was expected and what to do.
      OSError: a file that cannot be read or written.
    """
    from fusion_jax.commands._detect.asked import address_of
    from fusion_jax.commands._shared.screen import progress_bar
    from fusion_jax.data.address import open_address
    from fusion_jax.wording import counted, listed

    if config.out.suffix not in (".csv", ".json"):
        raise ValueError(f"--out {config.out}: expected a name that ends in .csv, or in .json for COCO's results.")
    if config.masks and config.out.suffix != ".json":
        raise ValueError(f"--masks with --out {config.out}: masks go into COCO's results; name a file .json.")
    address = address_of(config.cohort, coco=config.coco, images=config.images, table=config.table)
    from fusion_jax.detection.trained import DIVISION, find, load_detector

    folder = _training(config.run)
    record = load_detector(folder)
    if config.masks and (not record["config"]["masks"] or record["config"]["head"] == "retinanet"):
        raise ValueError(f"--masks: the detector of {folder} has none. Leave the option out.")
    cohort = open_address(address)
    ids = _coco_ids(config, cohort, record["inputs"]["classes"]) if config.out.suffix == ".json" else None
    with progress_bar("looking") as bar:
        found = find(folder, cohort, report=bar)
    kept = (found.table["score"] >= config.min_score).to_numpy(dtype=bool)
    table = found.table[kept].reset_index(drop=True)
    if ids is None:
        from fusion_jax.records import write_text

        write_text(config.out, table.to_csv(index=False, lineterminator="\n"))
    else:
        _write_coco(config, cohort, found, kept, table, record, ids)
    print(
        f"{counted(len(table), 'detection')} in {counted(found.images, 'image')} of {cohort.name} by "
        f"{record['name']}: {config.out}"
    )
    known = _seen(folder / DIVISION, cohort)
    if known:
        print(
            f"Warning: {len(known)} of these cases ({listed(known)}) have the ids of cases that the detector was "
            "trained or chosen on; if they are the same, what it finds there says nothing about new patients."
        )
    return 0


def _training(run: Path) -> Path:
    """The folder of the one training that is meant.

    Raises:
      ValueError: none, or several to choose among.
    """
    if (run / "recipe.json").is_file() or not (run / "tasks").is_dir():
        return run
    found = sorted(path.parent for path in (run / "tasks").glob("*/r*_f*_s*/recipe.json"))
    if len(found) == 1:
        return found[0]
    from fusion_jax.wording import counted, listed

    way_out = f"Name it: {listed(found, 4)}" if found else "Train a detector there first"
    raise ValueError(f"{run}: {counted(len(found), 'training')}; expected one. {way_out}.")


def _seen(division: Path, cohort: Any) -> list[str]:
    import json

    if not division.exists():
        return []
    parts = json.loads(division.read_text(encoding="utf-8"))
    trained = {*parts["train"], *parts["validation"]}
    return [case for case in cohort.case_id if case in trained]


def _coco_ids(config: Config, cohort: Any, classes: list[str]) -> Any:
    """Numbers of images and classes: those of the truth, or where it names no class those that `write_coco` would give.

    Raises:
      ValueError: the truth names some classes, but not all that the detector knows.
    """
    from fusion_jax.data.coco import CocoIds, coco_ids
    from fusion_jax.wording import listed

    ids = coco_ids(cohort if config.coco is None else config.coco)
    if not ids.categories:
        return CocoIds(ids.images, {name: number for number, name in enumerate(classes, start=1)})
    lacking = [name for name in classes if name not in ids.categories]
    if lacking:
        raise ValueError(
            f"--out {config.out}: the detector finds {listed(lacking)}, and {config.coco or cohort.name} has the "
            f"classes {listed(ids.categories)} alone, so that COCO's results could not number it. Add the category, "
            "leave the categories empty, or name a file .csv."
        )
    return ids


def _write_coco(
    config: Config, cohort: Any, found: Any, kept: Any, table: Any, record: dict[str, Any], ids: Any
) -> None:
    """COCO's results."""
    import numpy as np

    from fusion_jax.data.coco import write_coco_results

    segmentations = None
    if config.masks:
        from fusion_jax.data.run_length import run_length
        from fusion_jax.detection.postprocessing import paste_masks

        image = record["inputs"]["image"]
        image = image if image in cohort.sources else next(n for n, s in cohort.sources.items() if s.kind == "image")
        segmentations = []
        boxes = table[["x0", "y0", "x1", "y1"]].to_numpy(np.float64)
        for row, mask, box in zip(found.rows[kept].tolist(), found.masks[kept], boxes, strict=True):
            height, width = cohort.image(image, row).values.shape[:2]
            segmentations.append(run_length(np.asarray(paste_masks(mask[None], box[None], height, width)[0]) > 0.5))
    write_coco_results(config.out, table, ids, segmentations=segmentations)
