"""Small images with bright and dark squares that a tiny detector learns in seconds."""

from typing import Any

import numpy as np
import pandas as pd

from fusion_jax.data.cohort import Boxes, Cohort, Columns

TINY: dict[str, Any] = {
    "image_size": [64, 96],
    "anchors": "fit",
    "optimiser": "adam",
    "learning_rate": 0.003,
    "augment": "none",
    "weight_decay": 0.0,
    "config": {
        "backbone": "cnn",
        "width": 0.5,
        "channels": 32,
        "hidden": 32,
        "mask_hidden": 8,
        "mask_rois": 4,
        "rpn_batch": 64,
        "roi_batch": 32,
        "rpn_before_train": 200,
        "rpn_before": 100,
        "rpn_after_train": 64,
        "rpn_after": 32,
    },
}
"""Arguments of a recipe that trains in seconds."""


def squares(n: int = 12, seed: int = 0) -> Cohort:
    """Images of two sizes with a bright square, every other with a dark one beside it; two images a patient.

    The last image has no box, and the third patient's vitals are partly missing.
    """
    rng = np.random.default_rng(seed)
    images, boxes = [], []
    for number in range(n):
        height, width = (64, 96) if number % 3 else (128, 96)
        image = rng.normal(60, 4, (height, width, 1))
        corners, codes = [], []
        for code in range(0 if number == n - 1 else 1 + number % 2):
            side, x = int(rng.integers(20, 28)), int(rng.integers(2, 14)) + 46 * code
            top = int(rng.integers(2, 62 - side)) * height // 64
            extent = side * height // 64
            image[top : top + extent, x : x + side] += -45 if code else 110
            corners.append([x, top, x + side, top + extent])
            codes.append(code)
        images.append(np.clip(image, 0, 255).astype(np.uint8))
        boxes.append(Boxes(np.array(corners, float).reshape(-1, 4), np.array(codes, np.int64)))
    vitals = rng.normal(120, 9, n).round()
    table = pd.DataFrame(
        {
            "sex": [("F", "M")[number % 2] for number in range(n)],
            "age": rng.normal(60, 9, n).round(),
            "sbp": np.where(np.arange(n) % 6 == 4, np.nan, vitals),
            "outcome": [None, *(str(number % 2) for number in range(1, n))],
        }
    )
    cohort = Cohort.from_arrays(
        {"xray": images},
        table=table,
        case_id=[f"c{number:02d}" for number in range(n)],
        patient_id=[f"p{number // 2}" for number in range(n)],
        roles={"sex": "input", "age": "input", "sbp": "input", "outcome": "label"},
        boxes=boxes,
        box_classes=("bright", "dark"),
        name="squares",
    )
    return cohort.with_source("clinical", Columns(("sex", "age", "sbp"), n))
