"""Names of a package that are imported on first use."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module

__all__ = ["homes_of", "lazy_attributes"]


def lazy_attributes(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """The `__getattr__` of a package whose names are imported on first use (PEP 562).

    Args:
      package: its name; it has `__all__`, which an error lists.
      homes: where each name is defined: a module; the empty text for names that are modules of the package themselves.

    Returns:
      A function of a name that imports its module, keeps the value in the package and returns it.

    Example:
      >>> import fusion_jax.data
      >>> fusion_jax.data.read_tabel
      Traceback (most recent call last):
        ...
      AttributeError: module 'fusion_jax.data' has no attribute 'read_tabel'; it offers CLINICAL_INPUTS, ...
    """

    def attribute(name: str) -> object:
        here = sys.modules[package]
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it offers {', '.join(here.__all__)}")
        if not homes[name]:
            return import_module(f"{package}.{name}")
        value = getattr(import_module(homes[name]), name)
        setattr(here, name, value)
        return value

    return attribute


def homes_of(package: str, names: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The module of every name, from the names of every module of the package."""
    return {name: f"{package}.{module}" for module, of_module in names.items() for name in of_module}
