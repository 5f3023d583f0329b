"""The Cox fit reaches its minimum on real follow-up, whatever the penalty."""

import numpy as np
import pytest

from fusion_jax.data.collections import soft_tissue_sarcoma_cohort
from fusion_jax.data.splits import k_fold
from fusion_jax.models.cox import fit_cox, partial_likelihood
from fusion_jax.models.features import fit_features


@pytest.mark.parametrize("penalty", [0.03, 0.1, 1.0, 1000.0])
def test_newton_steps_end_where_the_gradient_vanishes(penalty):
    """Near the minimum the objective stands still in double precision while the gradient does not yet."""
    cohort = soft_tissue_sarcoma_cohort(paper_cohort=True)
    split = k_fold(cohort, 2, seed=0).splits[1]
    rows = split.rows(cohort).train
    features = fit_features(cohort, split.train, fold="one", features="clinical")
    x, table = features.apply(cohort, rows, split.train), cohort.table.iloc[rows]
    event = table["distant_metastases"].to_numpy() == 1
    days = table["days_diagnosis_to_outcome"].where(event, table["days_diagnosis_to_last_follow_up"]).to_numpy(float)
    beta = fit_cox(x, days, event, penalty=penalty)
    slope = -partial_likelihood(beta, x, days, event).gradient / len(days) + penalty * beta
    assert np.abs(slope).max() < 1e-8
