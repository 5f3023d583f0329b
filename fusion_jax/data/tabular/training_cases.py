"""Whom something was fitted on, so that it cannot be used in another fold by mistake."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fusion_jax.wording import counted, listed

__all__ = ["TrainingCases", "case_digest", "cases_from_json", "shown", "unique_ids"]

SHOWN = 5
"""Cases that an error names before it counts the rest."""

LONGEST = 40
"""Characters of a name that an error shows."""


@dataclass(frozen=True)
class TrainingCases:
    """The cases that a transform or a selection was fitted on, remembered by digest.

    A digest stands for the case id so that a fitted table can be handed on with a model without the list of patients;
    who has the ids can recognise them, which is what the check needs.

    Attributes:
      fold: name of the fold, or the hash of the split, as the caller calls it.
      digests: 16 hexadecimal digits a case, sorted.
    """

    KEYS: ClassVar[tuple[str, ...]] = ("fold", "fingerprint", "training_cases")

    fold: str
    digests: tuple[str, ...]

    @classmethod
    def of(cls, case_ids: Iterable[Any], *, fold: str) -> "TrainingCases":
        """The record of these cases.

        Raises:
          TypeError: if `case_ids` is a text: one id where a collection is expected.
          ValueError: if there is no case, or one is named twice.

        Example:
          >>> TrainingCases.of(["P2", "P1"], fold="f0") == TrainingCases.of(["P1", "P2"], fold="f0")
          True
        """
        ids = unique_ids(case_ids, what=f"training cases of fold {fold!r}")
        if not ids:
            raise ValueError(f"fold {fold!r} has no training cases; give the ids of the cases to fit on.")
        return cls(fold, tuple(sorted(map(case_digest, ids))))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the fold's name and the cases, whatever their order."""
        return hashlib.sha256("\n".join((self.fold, *self.digests)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.digests)

    def to_json(self) -> dict[str, Any]:
        """Fold, fingerprint and digests under the keys `KEYS`."""
        return {"fold": self.fold, "fingerprint": self.fingerprint, "training_cases": list(self.digests)}

    def among(self, case_ids: Iterable[Any]) -> list[str]:
        """Those of `case_ids` that were fitted on."""
        fitted = frozenset(self.digests)
        return [str(case) for case in case_ids if case_digest(case) in fitted]

    def check(self, train_cases: Iterable[Any], *, others: Iterable[Any] = (), what: str = "this transform") -> None:
        """Refuse unless the cases fitted on are exactly `train_cases`.

        Args:
          train_cases: ids of the training cases of the fold in hand.
          others: further ids known to the caller, such as the rows of the table; those that were fitted on without
            being training cases now are the leak, and are named.
          what: what was fitted, for the message.

        Raises:
          ValueError: if the two sets of cases differ, with the cases by name.
        """
        ids = unique_ids(train_cases, what="training cases of the fold in hand")
        by_digest = {case_digest(case): case for case in ids}
        fitted = frozenset(self.digests)
        if by_digest.keys() == fitted:
            return
        unfitted = [case for digest, case in by_digest.items() if digest not in fitted]
        leaked = [case for case in self.among(others) if case_digest(case) not in by_digest]
        strangers = len(fitted - by_digest.keys())
        problems = []
        if strangers:
            named = f", among them {shown(leaked)}" if leaked else ""
            problems.append(f"it was fitted on {counted(strangers, 'case')} outside that training set{named}")
        if unfitted:
            problems.append(f"it has not seen {counted(len(unfitted), 'case')} of it ({shown(unfitted)})")
        raise ValueError(
            f"{what} was fitted in fold {self.fold!r} on {counted(len(self), 'case')}, but the fold in hand trains on "
            f"{len(ids)}: {', and '.join(problems)}. Fit again on the training cases of this fold, or "
            "load what was fitted there."
        )


def cases_from_json(value: Mapping[str, Any], where: str) -> TrainingCases:
    """The training cases in a larger object that has the keys `TrainingCases.KEYS`."""
    fold, digests = value["fold"], value["training_cases"]
    if not isinstance(fold, str) or not isinstance(digests, list) or not digests:
        raise ValueError(f"{where}: expected a text under fold and a list of digests under training_cases.")
    if not all(isinstance(digest, str) and len(digest) == 16 for digest in digests):
        raise ValueError(f"{where}: training_cases are expected to be digests of 16 hexadecimal digits.")
    cases = TrainingCases(fold, tuple(digests))
    if cases.fingerprint != value["fingerprint"]:
        raise ValueError(f"{where}: the fingerprint is not that of fold and training cases. Fit again.")
    return cases


def case_digest(case: Any) -> str:
    """16 hexadecimal digits of one case id."""
    return hashlib.blake2b(str(case).encode(), digest_size=8).hexdigest()


def unique_ids(case_ids: Iterable[Any], *, what: str) -> list[str]:
    """The ids as text, each once."""
    if isinstance(case_ids, str):
        raise TypeError(f"{what} are {case_ids!r}, a single text; give a list of case ids.")
    ids = [str(case) for case in case_ids]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{what} name {shown(_repeated(ids))} more than once; every case counts once.")
    return ids


def shown(names: list[str]) -> str:
    """The first few names, quoted, long ones cut, and how many more there are."""
    return listed((repr(name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…") for name in names), SHOWN)


def _repeated(ids: list[str]) -> list[str]:
    seen, twice = set(), {}
    for case in ids:
        if case in seen:
            twice[case] = None
        seen.add(case)
    return list(twice)
