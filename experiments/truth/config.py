"""Truth tests: how often "fusion helped" is said where it is false, and where it is true.

python -m experiments.truth.run                                        # 1,000 cohorts of each null
python -m experiments.truth.run --cohorts 100 --helped-cohorts 50      # a quick look
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

SINGLES = ("image-only", "clinical-only")
FUSED = ("concatenate", "bilinear")
SOURCES = ("image", "clinical")


class Scenario(NamedTuple):
    """A kind of cohort.

    Attributes:
      name: of the signal.
      signal: arguments of `data.synthetic.dial`.
      n: cases of a cohort, half of each class.
      helps: whether all sources together know more than the best one: the truth.
      model: the fused model whose power counts.
    """

    name: str
    signal: dict[str, Any]
    n: int
    helps: bool
    model: str = "concatenate"


NOTHING = {"image": 0.0, "clinical": 0.0}

SCENARIOS = (
    Scenario("both sources noise", {"unique": NOTHING}, 200, False),
    Scenario("one source noise", {"unique": {"image": 1.0, "clinical": 0.0}}, 200, False),
    Scenario("identical redundancy", {"unique": NOTHING, "redundant": 1.0}, 200, False),
    Scenario("unique", {"unique": {"image": 1.0, "clinical": 1.0}}, 400, True),
    Scenario("noisily redundant", {"unique": NOTHING, "noisy_redundant": 1.0}, 400, True),
    Scenario("synergistic", {"unique": NOTHING, "synergy": 1.0}, 300, True, "bilinear"),
)


@dataclass(frozen=True)
class Config:
    """False and true "fusion helped" on cohorts whose truth is known.

    Attributes:
      cohorts: of each null.
      helped_cohorts: of each kind where fusion helps; a share of four fifths is known to .06 from 300.
      folds: of the cross-validation.
      bootstrapped: cohorts of each kind that the bootstrap judges as well.
      large: cases of one large cohort of each kind that helps; models trained on half of it should come near the best
        possible AUC on the other half.
      seed: of all draws.
      out: folder of the results.
    """

    cohorts: int = 1000
    helped_cohorts: int = 300
    folds: int = 5
    bootstrapped: int = 10
    large: int = 40_000
    seed: int = 0
    out: Path = Path("results/truth")
