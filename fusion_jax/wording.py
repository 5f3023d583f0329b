"""How messages and reports name several things; the same on every floor."""

from collections.abc import Iterable

__all__ = ["counted", "listed"]


def listed(words: Iterable[object], most: int = 4) -> str:
    """The first few of a list, and how many more there are.

    Example:
      >>> listed(range(6))
      '0, 1, 2, 3 and 2 more'
    """
    found = [str(word) for word in words]
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


def counted(count: int, word: str) -> str:
    """A number and its word.

    Example:
      >>> counted(1, "case"), counted(2, "case")
      ('1 case', '2 cases')
    """
    return f"{count} {word}{'' if count == 1 else 's'}"
