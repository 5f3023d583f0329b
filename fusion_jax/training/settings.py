"""Whether a folder was started with the settings that are asked for now."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["check_settings", "flat"]

SHOWN = 4
"""Settings that a message names."""


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings as one level, names joined by dots, values as JSON gives them back.

    Raises:
      TypeError: a value that JSON cannot hold.

    Example:
      >>> flat({"fit": {"epochs": 3, "betas": (0.9, 0.999)}})
      {'fit.betas': [0.9, 0.999], 'fit.epochs': 3}
    """
    found: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, Mapping) and value:
            for part, inner in value.items():
                walk(inner, f"{name}.{part}" if name else str(part))
            return
        try:
            found[name] = json.loads(json.dumps(value, default=_plain))
        except TypeError:
            raise TypeError(
                f"{name} is a {type(value).__name__}; expected what JSON can hold: numbers, text, lists and mappings."
            ) from None

    walk(settings, "")
    return dict(sorted(found.items()))


def _plain(value: Any) -> Any:
    if not hasattr(value, "tolist"):
        raise TypeError
    return value.tolist()


def check_settings(folder: Path, stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a folder of another run.

    Args:
      folder: for the message.
      stored, now: what `flat` gave, then and now.

    Raises:
      ValueError: they differ; the message names both values of each.
    """
    absent = object()
    differing = [name for name in sorted({*stored, *now}) if stored.get(name, absent) != now.get(name, absent)]
    if not differing:
        return
    named = [f"{name} {_shown(stored, name)} then, {_shown(now, name)} now" for name in differing[:SHOWN]]
    more = f" (and {len(differing) - SHOWN} more)" if len(differing) > SHOWN else ""
    raise ValueError(
        f"{folder}: was started with other settings: {'; '.join(named)}{more}. Use the settings of then to go on, or "
        "another folder."
    )


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name]) if name in settings else "absent"
