"""Where a cohort is, as JSON holds it, so that any process can open it by itself."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_jax.data.cohort import Cohort
from fusion_jax.wording import listed

__all__ = ["cohort_address", "open_address"]

ADDRESSES = ("folder", "shards", "load", "function")


def cohort_address(cohort: Mapping[str, Any] | str | Path | Cohort) -> dict[str, Any]:
    """The address of a cohort as JSON holds it: a folder, shards, or the name of a collection.

    Raises:
      TypeError: a cohort itself.
      ValueError: neither such a folder nor such a name; the message lists the names.

    Example:
      >>> cohort_address("hcc_survival")
      {'load': 'hcc_survival'}
    """
    if isinstance(cohort, Mapping):
        if len([key for key in ADDRESSES if key in cohort]) != 1 or not set(cohort) <= {*ADDRESSES, "arguments"}:
            raise ValueError(f"cohort has the keys {listed(cohort)}; expected one of {', '.join(ADDRESSES)}.")
        return dict(cohort)
    if isinstance(cohort, Cohort):
        raise TypeError(
            f"cohort {cohort.name} is in memory, and every training opens its cohort by itself, perhaps in another "
            "process. Name a folder with a cohort.toml, or a function that makes it: "
            '{"function": "package.module:name"}.'
        )
    path = Path(cohort)
    if (path.is_file() and path.suffix == ".toml") or (path / "cohort.toml").is_file():
        return {"folder": str(path.resolve())}
    if (path / "cohort.json").is_file():
        return {"shards": str(path.resolve())}
    from fusion_jax.data.collections import collections

    names = [one.name for one in collections()]
    if str(cohort) in names:
        return {"load": str(cohort)}
    where = "has no cohort.toml and no shards" if path.is_dir() else "is no folder"
    raise ValueError(
        f"{cohort} {where}, and no collection has that name; expected a folder with a cohort.toml (`fusion-jax cohort "
        f"init` writes one), shards, or one of {', '.join(names)}."
    )


def open_address(address: Mapping[str, Any]) -> Cohort:
    """The cohort of an address that JSON can hold, so that any worker can open it by itself.

    Args:
      address: `{"folder": path}` with a `cohort.toml`, `{"shards": path}`, `{"load": name}` of a collection, or
        `{"function": "package.module:name", "arguments": {...}}`, a function that returns a cohort.

    Raises:
      ValueError: an address of another form.
      ImportError: the function's module cannot be imported.

    Example:
      >>> open_address({"load": "hcc_survival"}).classes
      ('0', '1')
    """
    kinds = [kind for kind in ADDRESSES if kind in address]
    if len(kinds) != 1 or set(address) - {kinds[0], "arguments"}:
        raise ValueError(
            f"the address of the cohort is {dict(address)!r}; expected one of {', '.join(map(repr, ADDRESSES))}, as in "
            '{"folder": "data/liver"}.'
        )
    [kind] = kinds
    if "arguments" in address and kind != "function":
        raise ValueError(f"the address of the cohort has arguments, which only a function takes, not {kind!r}.")
    if kind == "folder":
        from fusion_jax.data.folder import open_cohort

        return open_cohort(address["folder"])
    if kind == "shards":
        from fusion_jax.data.shards import open_shards

        return open_shards(address["shards"])
    if kind == "load":
        from fusion_jax.data.collections import load

        return load(address["load"])
    module, _, name = str(address["function"]).partition(":")
    if not name:
        raise ValueError(f"the function of the cohort is {address['function']!r}; expected 'package.module:name'.")
    function: Any = getattr(importlib.import_module(module), name, None)
    if function is None:
        raise ValueError(f"module {module} has no function {name!r}, which should return the cohort.")
    cohort = function(**address.get("arguments", {}))
    if not isinstance(cohort, Cohort):
        raise ValueError(f"{address['function']} returned a {type(cohort).__name__}; expected a Cohort.")
    return cohort
