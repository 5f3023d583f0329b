"""The collections by name."""

import difflib
from collections.abc import Callable
from typing import NamedTuple

from fusion_jax.data.cohort import Cohort
from fusion_jax.data.collections.chest_xray import covid_cxr, jsrt
from fusion_jax.data.collections.files import collection_folder
from fusion_jax.data.collections.hcc import hcc_survival
from fusion_jax.data.collections.sarcoma import soft_tissue_sarcoma_cohort, sts_petct
from fusion_jax.data.collections.skin import ham10000_small

__all__ = ["Collection", "collections", "load"]


class Collection(NamedTuple):
    """A cohort that can be loaded by name.

    Attributes:
      name: for `load`.
      content: what it holds, in a line.
      licence: of images and table.
      n: number of cases.
      bundled: whether it comes with the package.
      missing: why it cannot be loaded here; empty where it can.
    """

    name: str
    content: str
    licence: str
    n: int
    bundled: bool
    missing: str


class _Entry(NamedTuple):
    make: Callable[[], Cohort]
    content: str
    licence: str
    n: int
    bundled: bool


_CATALOGUE = {
    "soft_tissue_sarcoma": _Entry(
        soft_tissue_sarcoma_cohort, "PET, CT, tumour mask at 4 mm, clinical sheet", "CC BY 3.0", 51, True
    ),
    "hcc_survival": _Entry(hcc_survival, "49 clinical columns, survival of one year", "CC BY 4.0", 132, True),
    "sts_petct": _Entry(sts_petct, "PET, CT, tumour masks at full resolution, clinical sheet", "CC BY 3.0", 51, False),
    "jsrt": _Entry(
        jsrt, "chest X-rays with nodule boxes, organ masks, age, sex", "research, by JSRT's terms", 197, False
    ),
    "covid_cxr": _Entry(
        covid_cxr, "chest X-rays of 133 patients, sparse clinical columns, lung boxes", "non-commercial", 248, False
    ),
    "ham10000_small": _Entry(
        ham10000_small, "skin lesions with age, sex, body site, lesion boxes", "non-commercial", 5928, False
    ),
}


def load(name: str) -> Cohort:
    """The cohort of a name; `collections()` lists them.

    Tables are read and checked at once, images when a case is asked for.

    Raises:
      ValueError: no collection has this name.
      FileNotFoundError: it does not come with the package, and `$FUSION_JAX_DATA` does not hold it.
      UnreadableFile: a file of it is damaged or another one.

    Example:
      >>> load("hcc_survival").classes
      ('0', '1')
    """
    if name not in _CATALOGUE:
        close = difflib.get_close_matches(name, _CATALOGUE, n=1)
        raise ValueError(
            f"no collection {name!r}; expected one of {', '.join(_CATALOGUE)}."
            + (f" Did you mean {close[0]!r}?" if close else "")
        )
    return _CATALOGUE[name].make()


def collections() -> tuple[Collection, ...]:
    """All collections, with the reason where one cannot be loaded.

    Example:
      >>> [(entry.name, entry.licence, entry.n) for entry in collections() if entry.bundled]
      [('soft_tissue_sarcoma', 'CC BY 3.0', 51), ('hcc_survival', 'CC BY 4.0', 132)]
    """
    listed = []
    for name, entry in _CATALOGUE.items():
        missing = ""
        if not entry.bundled:
            try:
                collection_folder(name)
            except FileNotFoundError as error:
                missing = str(error)
        listed.append(Collection(name, entry.content, entry.licence, entry.n, entry.bundled, missing))
    return tuple(listed)
