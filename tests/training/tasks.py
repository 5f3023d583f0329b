"""Tasks at the top of a module, as workers import them."""

import json
import os
import time
from pathlib import Path

from fusion_jax.records import write_csv


def write_scores(config_json: str, model: str, repeat: int, fold: int, seed: int, folder: str) -> None:
    """Two rows of predictions; one line in `runs.txt` for every run."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    with (place / "runs.txt").open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    digits = json.loads(config_json).get("digits", 0.1)
    rows = [
        {"case_id": f"{case:03d}", "patient_id": f"{case:03d}", "model": model, "label": case % 2,
         "score": digits + case / 3, "split": "test", "fold": fold, "repeat": repeat, "seed": seed}
        for case in (2 * fold, 2 * fold + 1)
    ]  # fmt: skip
    write_csv(place / "predictions.csv", rows)


def die_once(config_json: str, model: str, repeat: int, fold: int, seed: int, folder: str) -> None:
    """Fold 1 ends its process the first time it runs."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    if fold == 1 and not (place / "died").exists():
        (place / "died").touch()
        os._exit(3)
    write_scores(config_json, model, repeat, fold, seed, folder)


def poison(config_json: str, model: str, repeat: int, fold: int, seed: int, folder: str) -> None:
    """Fold 1 ends its process every time; the others take a while, so that some run beside it."""
    if fold == 1:
        place = Path(folder)
        with (place / "runs.txt").open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
        os._exit(3)
    time.sleep(0.05)
    write_scores(config_json, model, repeat, fold, seed, folder)


def describe_worker(config_json: str, model: str, repeat: int, fold: int, seed: int, folder: str) -> None:
    """What the worker was told of threads and cache, beside the predictions."""
    cache = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    names = ("NPROC", "OMP_NUM_THREADS", *cache)
    (Path(folder) / "environment.json").write_text(json.dumps({name: os.environ.get(name) for name in names}))
    write_scores(config_json, model, repeat, fold, seed, folder)
