"""Heads on image features and a block of markers: exact ridge logistic regressions, with every penalty tried.

A linear head with a penalty has one optimum, so that nothing here depends on learning rates, batches or early stopping.
Features are rotated onto their principal axes first, which changes no penalised fit and makes a block of 6,000
coordinates cost what its rank costs.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

__all__ = ["PENALTIES", "RidgeHeads", "ridge_heads", "standardised"]

PENALTIES = (3.0, 30.0, 300.0, 3000.0)
"""Weights of half the squared norm beside the summed log-loss."""

RANK_TOLERANCE = 1e-6
"""Singular values below this share of the largest are left out; eigenvalues of float64 resolve its square."""


class RidgeHeads(NamedTuple):
    """One head for every penalty.

    Attributes:
      logits: of all patients.
      validation_loss: mean log-loss of the validation patients.
      chosen: penalty with the smallest, by index.
    """

    logits: Float[np.ndarray, "p n"]
    validation_loss: Float[np.ndarray, "p"]
    chosen: int


def standardised(features: Float[np.ndarray, "n f"], train: Int[np.ndarray, "m"]) -> Float[np.ndarray, "n f"]:
    """Features with mean 0 and standard deviation 1 over the training patients; constant ones become 0."""
    found = np.asarray(features, np.float64)
    found = found - found[train].mean(axis=0)
    sd = found[train].std(axis=0)
    return np.where(sd > 1e-9, found / np.where(sd > 1e-9, sd, 1.0), 0.0)


def ridge_heads(
    features: Float[np.ndarray, "n f"],
    label: Int[np.ndarray, "n"],
    train: Int[np.ndarray, "m"],
    validation: Int[np.ndarray, "v"],
    penalties: tuple[float, ...] = PENALTIES,
) -> RidgeHeads:
    r"""Minimisers of :math:`\sum_i \log(1 + e^{-s_i z_i}) + \frac\lambda2 \lVert w \rVert^2` for every penalty.

    Args:
      features: of all patients, in any units; they are centred by the training patients.
      label: 0 or 1.
      train, validation: rows; the others are predicted only.
      penalties: lambda.

    Returns:
      Logits of all patients, and the penalty that the validation patients choose.
    """
    from sklearn.linear_model import LogisticRegression

    turned = _rotated(features - features[train].mean(axis=0), train)
    logits, losses = [], []
    for penalty in penalties:
        model = LogisticRegression(C=1 / penalty, solver="newton-cholesky", tol=1e-6, max_iter=200)
        model.fit(turned[train], label[train])
        found = model.decision_function(turned)
        logits.append(found)
        signed = np.where(label[validation] == 1, -found[validation], found[validation])
        losses.append(float(np.mean(np.logaddexp(0.0, signed))))
    return RidgeHeads(np.stack(logits), np.array(losses), int(np.argmin(losses)))


def _rotated(centred: Float[np.ndarray, "n f"], train: Int[np.ndarray, "m"]) -> Float[np.ndarray, "n r"]:
    """The features along their principal axes over the training patients; axes without spread are left out."""
    own = centred[train]
    if own.shape[1] <= own.shape[0]:
        squares, axes = np.linalg.eigh(own.T @ own)
    else:
        squares, sides = np.linalg.eigh(own @ own.T)
        axes = own.T @ sides / np.sqrt(np.maximum(squares, RANK_TOLERANCE**2 * squares[-1]))
    kept = squares > RANK_TOLERANCE**2 * squares[-1]
    # A layer that says nothing of anybody still has a head: the bias.
    return centred @ axes[:, kept] if squares[-1] > 0 else np.zeros((len(centred), 1))
