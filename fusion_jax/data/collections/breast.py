"""Published test predictions of two models of breast cancer in MRI."""

from typing import TYPE_CHECKING

import numpy as np

from fusion_jax.data.collections.files import bundled_bytes

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["breast_mri_predictions"]

FILES = {
    "Image-Only": (
        "breast_mri_predictions_image_only.csv.gz",
        "d9cc2a7dd846f220f9fa0c699615c201abb8c95f5b7188b7fa4d8d8f00d15956",
    ),
    "Learned Feature Fusion": (
        "breast_mri_predictions_learned_feature_fusion.csv.gz",
        "308957ecfa68226aba668ec3570a25e96a79714e0102bd02bf9ec4ac928336dc",
    ),
}


def breast_mri_predictions() -> "pandas.DataFrame":
    """Predictions of Image-Only and Learned Feature Fusion for the same 4,909 test cases, 1,006 of them cancers.

    Which cases are of one patient was not published: an interval that takes every case as independent is too narrow.

    Returns:
      The predictions table: `case_id` (numbered here, in the order of the source), `model`, `label` (1 cancer, 0
      benign), `score` (probability of cancer) and `split`, one row a model and case.

    Raises:
      UnreadableFile: a bundled file is not that of this version.

    Example:
      >>> table = breast_mri_predictions()
      >>> len(table), table["model"].unique().tolist(), int(table["label"].sum())
      (9818, ['Image-Only', 'Learned Feature Fusion'], 2012)

    References:
      Holste et al. 2021, "End-to-End Learning of Fused Image and Non-Image Features for Improved Breast Cancer
      Classification from MRI", the "Best Run" models; their repository gholste/breast_mri_fusion, MIT licence.
    """
    import io

    import pandas as pd

    tables = []
    for model, (name, sha256) in FILES.items():
        source = pd.read_csv(io.BytesIO(bundled_bytes(name, sha256)), compression="gzip")
        tables.append(
            pd.DataFrame(
                {
                    "case_id": [f"case_{i:04d}" for i in range(len(source))],
                    "model": model,
                    "label": source["y_true"].astype(np.int64),
                    "score": source["y_prob"],
                    "split": "test",
                }
            )
        )
    return pd.concat(tables, ignore_index=True)
