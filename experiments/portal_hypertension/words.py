"""What a test of the claim says, in sentences that go no further than its intervals."""

import math

from experiments.portal_hypertension.claim import Claim, Difference
from fusion_jax.evaluation.paired import holm

__all__ = ["has_peak", "sentences"]


def has_peak(claim: Claim) -> bool:
    """Whether gamma near 1 beats the smallest and the largest size, after Holm's adjustment over all sizes."""
    if len(claim.peak) < 2:
        return False
    adjusted = holm([one.p_value for one in claim.peak])
    won = [one.value > 0 and p < 0.05 for one, p in zip(claim.peak, adjusted, strict=True)]
    return won[0] and won[-1]


def sentences(claim: Claim) -> tuple[str, ...]:
    """Is there a peak, where is it, is it the encoding's, and does it come from fusion at all?"""
    curve = next(curve for curve in claim.curves if curve.control == "positional")
    at_one = min(range(len(curve.gammas)), key=lambda place: abs(math.log(curve.gammas[place])))
    best = max(range(len(curve.gammas)), key=lambda place: curve.auc[place])
    equal = claim.splits / len(curve.gammas)
    share = f"{curve.best[at_one]:.1f} of {claim.splits} splits ({equal:.1f} if all were equal)"
    found = "There is a peak at γ ≈ 1" if has_peak(claim) else "No evidence of a peak at γ ≈ 1"
    ends = " and ".join(map(_told, dict.fromkeys((claim.peak[0], claim.peak[-1]))))
    lines = [
        (
            f"{found}: {ends}; AUC is largest at γ = {curve.gammas[best]:.2g} ({curve.auc[best]:.3f}; "
            f"{curve.auc[at_one]:.3f} at γ ≈ 1), and γ ≈ 1 is best in {share}."
        )
    ]
    against = "; ".join(_told(one) for one in claim.over_controls)
    lines.append(f"The encoding at γ ≈ 1 against controls of its size: {against}.")
    gap = [train - auc for train, auc in zip(curve.train_auc, curve.auc, strict=True)]
    lines.append(
        f"Image and encoding at γ ≈ 1 {_told(claim.benefit)}; training exceeds testing by {gap[0]:.3f} at γ = "
        f"{curve.gammas[0]:.2g} and by {gap[-1]:.3f} at γ = {curve.gammas[-1]:.2g}."
    )
    return tuple(lines)


def _told(one: Difference) -> str:
    numbers = f"{one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}]".replace("-", "\N{MINUS SIGN}")
    what = one.what if one.what.startswith("over") else f"over {one.what.replace('gamma', 'γ =')}"
    return f"{what} {numbers}"
