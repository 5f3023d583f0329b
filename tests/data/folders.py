"""A small cohort folder of PNG images, masks and a table, for tests that need one on disk."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image as Picture

CONFIG = """\
name = "nodules"
table = "cases.csv"

[ids]
case = "case_id"
patient = "patient"
site = "hospital"

[roles]
input = ["age", "sex"]
label = "malignant"
group = "hospital"
never = ["name"]

[units]
age = "years"

[sources.xray]
files = "images/{case_id}.png"
preprocess = [{op = "window", low = 0, high = 255}]

[sources.nodule]
files = "masks/{case_id}.png"
kind = "mask"
of = "xray"

[sources.clinical]
columns = ["age", "sex"]

[boxes]
file = "boxes.csv"
of = "xray"
"""


def write_folder(folder: Path, n: int = 8, size: int = 24, config: str = CONFIG) -> Path:
    """Write a clean cohort: distinct images with a bright square, its mask and its box; nothing tells the label."""
    rng = np.random.default_rng(7)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    ids = [f"c{number:03d}" for number in range(n)]
    rows, boxes = [], []
    for number, case in enumerate(ids):
        image = rng.integers(20, 120, (size, size)).astype(np.uint8)
        x, y = rng.integers(3, size - 8, 2)
        mask = np.zeros((size, size), np.uint8)
        mask[y : y + 5, x : x + 5] = 1
        image[mask > 0] += 100
        Picture.fromarray(image).save(folder / "images" / f"{case}.png")
        Picture.fromarray(mask).save(folder / "masks" / f"{case}.png")
        boxes.append((case, "nodule", x, y, x + 5, y + 5))
        rows.append(
            {
                "case_id": case,
                "patient": f"p{number:03d}",
                "hospital": "ab"[number // 2 % 2],
                "age": int(rng.integers(30, 80)),
                "sex": "fm"[number // 4 % 2],
                "malignant": ("no", "yes")[number % 2],
                "name": f"Somebody {number}",
            }
        )
    pd.DataFrame(rows).to_csv(folder / "cases.csv", index=False)
    columns = ["case_id", "label", "x0", "y0", "x1", "y1"]
    pd.DataFrame(boxes, columns=columns).to_csv(folder / "boxes.csv", index=False)
    (folder / "cohort.toml").write_text(config, encoding="utf-8")
    return folder


def edit(path: Path, old: str, new: str) -> None:
    """Replace text that must be there."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
