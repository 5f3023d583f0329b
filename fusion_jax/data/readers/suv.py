"""PET activity to standardised uptake value by body weight."""

import math
import os
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.readers.dicom import numbers

if TYPE_CHECKING:
    import pydicom

__all__ = ["first_acquired", "suv_bodyweight", "suv_bodyweight_factor"]

PHILIPS_SUV, PHILIPS_ACTIVITY = (0x7053, 0x1000), (0x7053, 0x1009)
GE_SCAN_TIME = (0x0009, 0x100D)

MOST_HALF_LIVES = 10
"""Beyond this a thousandth of the dose is left: the times of injection and scan do not belong together."""


def suv_bodyweight(weight_kg: float, dose_bq: float, half_life_s: float, elapsed_s: float) -> float:
    r"""What an activity concentration in Bq/ml is multiplied by to give SUV by body weight in g/ml.

    .. math:: f = \frac{1000\, m}{A \cdot 2^{-t / T}}

    Args:
      weight_kg: body weight m.
      dose_bq: injected activity A, at the time of injection.
      half_life_s: of the radionuclide, T.
      elapsed_s: seconds from injection to the time to which the image's decay is corrected, t.

    Example:
      >>> suv_bodyweight(weight_kg=70, dose_bq=350e6, half_life_s=6586.2, elapsed_s=6586.2)
      0.0004
    """
    return 1000 * weight_kg / (dose_bq * 2 ** (-elapsed_s / half_life_s))


def suv_bodyweight_factor(
    path: str | os.PathLike[str], dataset: "pydicom.Dataset", series: "Sequence[pydicom.Dataset] | None" = None
) -> float:
    """What the rescaled values of a PET slice are multiplied by to give SUV by body weight.

    Units BQML, CNTS with the Philips factors (7053,1000) or (7053,1009), or GML, which is SUV already. The time to
    which the dose decays is, by DecayCorrection: ADMIN, the injection; START, the start of the scan; NONE, the middle
    of the slice's own acquisition (the mean activity of its duration).

    The start of the scan is SeriesDate and SeriesTime, unless they are later than the first acquisition (a series that
    was processed afterwards): then GE's private scan time (0009,100D), else the first acquisition's own start, from
    AcquisitionTime and FrameReferenceTime. RadiopharmaceuticalStartDateTime goes before RadiopharmaceuticalStartTime,
    which is taken on the day of the scan, or on the day before where it would be later than the scan.

    Args:
      path: of the slice, for messages.
      dataset: header of the slice.
      series: headers of all slices; the first acquisition is looked for among them.

    Raises:
      UnreadableFile: a tag is missing, contradicts another, or holds what no examination has; the message names it.

    References:
      QIBA FDG-PET/CT profile 1.13, appendix on vendor-neutral SUV; DICOM PS3.3 C.8.9.1.
    """
    if dataset.get("Modality") != "PT":
        raise UnreadableFile(path, f"has the Modality {dataset.get('Modality')}", "SUV is for PET: leave out `suv`.")
    units = str(dataset.get("Units") or "")
    if units == "GML":
        kind = str(dataset.get("SUVType") or "BW")
        if kind != "BW":
            raise UnreadableFile(path, f"holds SUV by {kind} (SUVType)", "Expected BW, by body weight.")
        return 1.0
    activity = 1.0
    if units == "CNTS":
        suv = _private(path, dataset, PHILIPS_SUV)
        if suv is not None:
            return suv
        counts = _private(path, dataset, PHILIPS_ACTIVITY)
        if counts is None:
            raise UnreadableFile(
                path,
                "holds counts (Units CNTS) and neither (7053,1000) nor (7053,1009), Philips's factors to SUV and Bq/ml",
                "Export the series with its private tags, or in BQML.",
            )
        activity = counts
    elif units != "BQML":
        raise UnreadableFile(path, f"has the Units {units or '(none)'}", "Expected BQML, CNTS of Philips, or GML.")
    corrected = [str(word) for word in _words(dataset.get("CorrectedImage"))]
    if "ATTN" not in corrected:
        raise UnreadableFile(
            path, f"is not corrected for attenuation (CorrectedImage {corrected})", "Export the corrected series."
        )
    correction = str(dataset.get("DecayCorrection") or "")
    if correction not in ("START", "ADMIN", "NONE"):
        raise UnreadableFile(
            path, f"has the DecayCorrection {correction or '(none)'}", "Expected START, ADMIN or NONE."
        )
    if ("DECY" in corrected) == (correction == "NONE"):
        raise UnreadableFile(
            path, f"has the DecayCorrection {correction} and CorrectedImage {corrected}", "One of them is wrong."
        )
    weight = _positive(path, dataset, "PatientWeight", "kg")
    if not dataset.get("RadiopharmaceuticalInformationSequence"):
        raise UnreadableFile(path, "has no RadiopharmaceuticalInformationSequence", "Export the series with that tag.")
    tracer = dataset.RadiopharmaceuticalInformationSequence[0]
    dose = _positive(path, tracer, "RadionuclideTotalDose", "Bq")
    if correction == "ADMIN":
        return activity * suv_bodyweight(weight, dose, 1.0, 0.0)
    half_life = _positive(path, tracer, "RadionuclideHalfLife", "s")
    if correction == "START":
        # One slice's own header is not enough: beds are scanned one after the other.
        scan, decayed = _scan_start(path, series or [dataset], half_life), 1.0
    else:
        scan = _moment(path, dataset, "AcquisitionDate", "AcquisitionTime")
        decayed = _mean_decay(_duration(path, dataset), half_life)
    elapsed = (scan - _injection(path, tracer, scan)).total_seconds()
    if not 0 <= elapsed <= MOST_HALF_LIVES * half_life:
        raise UnreadableFile(
            path,
            f"was scanned {elapsed / 3600:.2f} h after the injection (half-life {half_life / 3600:.2f} h)",
            "Dates and times of injection and scan do not belong together, as after dates were shifted: correct them.",
        )
    return activity * suv_bodyweight(weight, dose, half_life, elapsed) / decayed


def first_acquired(path: str | os.PathLike[str], series: "Sequence[pydicom.Dataset]") -> "pydicom.Dataset":
    """Header of the slice that was scanned first.

    Raises:
      UnreadableFile: a slice without AcquisitionDate or AcquisitionTime.
    """
    return min(series, key=lambda one: _moment(path, one, "AcquisitionDate", "AcquisitionTime"))


def _mean_decay(duration_s: float, half_life_s: float) -> float:
    """Mean of the activity over a frame, relative to its start."""
    decay = math.log(2) * duration_s / half_life_s
    return -math.expm1(-decay) / decay if decay > 0 else 1.0


def _duration(path: str | os.PathLike[str], dataset: "pydicom.Dataset") -> float:
    return numbers(path, dataset, "ActualFrameDuration", 1)[0] / 1000


def _scan_start(path: str | os.PathLike[str], series: "Sequence[pydicom.Dataset]", half_life: float) -> datetime:
    first = first_acquired(path, series)
    acquired = _moment(path, first, "AcquisitionDate", "AcquisitionTime")
    start = _moment(path, first, "SeriesDate", "SeriesTime")
    if start <= acquired:
        return start
    if GE_SCAN_TIME in first:
        value = first[GE_SCAN_TIME].value
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
        return _parsed(path, "(0009,100D)", text.strip(" \0"))
    # FrameReferenceTime counts from the start of the scan to when the frame's activity equals its mean.
    if first.get("FrameReferenceTime") is None or first.get("ActualFrameDuration") is None:
        raise UnreadableFile(
            path,
            f"has a SeriesTime ({start:%H:%M:%S}) after its first AcquisitionTime ({acquired:%H:%M:%S}), and no "
            "FrameReferenceTime and ActualFrameDuration",
            "The start of the scan, to which decay is corrected, is not known: export the original series.",
        )
    reference = numbers(path, first, "FrameReferenceTime", 1)[0] / 1000
    mean = _mean_decay(_duration(path, first), half_life)
    at_mean = -math.log(mean) / math.log(2) * half_life
    return acquired + timedelta(seconds=at_mean - reference)


def _injection(path: str | os.PathLike[str], tracer: "pydicom.Dataset", scan: datetime) -> datetime:
    moment = tracer.get("RadiopharmaceuticalStartDateTime")
    if moment:
        return _parsed(path, "RadiopharmaceuticalStartDateTime", str(moment))
    clock = tracer.get("RadiopharmaceuticalStartTime")
    if not clock:
        raise UnreadableFile(
            path,
            "has neither RadiopharmaceuticalStartDateTime nor RadiopharmaceuticalStartTime",
            "Export the series with one of them.",
        )
    injected = _parsed(path, "RadiopharmaceuticalStartTime", f"{scan:%Y%m%d}{clock}")
    return injected if injected <= scan else injected - timedelta(days=1)


def _moment(path: str | os.PathLike[str], dataset: "pydicom.Dataset", day: str, clock: str) -> datetime:
    for name in (day, clock):
        if not dataset.get(name):
            raise UnreadableFile(path, f"has no {name}", "SUV needs it: export the series with that tag.")
    return _parsed(path, f"{day} and {clock}", f"{dataset.get(day)}{dataset.get(clock)}")


def _parsed(path: str | os.PathLike[str], name: str, text: str) -> datetime:
    """A DICOM date and time, YYYYMMDDHHMMSS.FFFFFF; an offset from UTC is left out, as the other times are local."""
    digits = text.split("+")[0].split("-")[0].strip()
    whole, _, fraction = digits.partition(".")
    try:
        if not whole.isascii() or not whole.isdigit() or len(whole) not in (10, 12, 14):
            raise ValueError(text)
        day = date(int(whole[:4]), int(whole[4:6]), int(whole[6:8]))
        clock = [int(whole[at : at + 2]) for at in range(8, len(whole), 2)]
        # A leap second is written as 60.
        seconds = min(clock[2], 59) if len(clock) > 2 else 0
        at = time(clock[0], clock[1] if len(clock) > 1 else 0, seconds, int((fraction or "0")[:6].ljust(6, "0")))
    except ValueError as error:
        raise UnreadableFile(
            path, f"has {text!r} in {name}", "Expected a date and time such as 20260131 093000."
        ) from error
    return datetime.combine(day, at)


def _positive(path: str | os.PathLike[str], dataset: Any, name: str, unit: str) -> float:
    value = dataset.get(name)
    number = math.nan if value in (None, "") else float(value)
    if not (math.isfinite(number) and number > 0):
        raise UnreadableFile(
            path, f"has {'no ' + name if value in (None, '') else f'{name} {value!r}'}", f"SUV needs it in {unit}."
        )
    return number


def _private(path: str | os.PathLike[str], dataset: "pydicom.Dataset", tag: tuple[int, int]) -> float | None:
    value = dataset[tag].value if tag in dataset else None
    if value in (None, "", b""):
        return None
    number = float(value.decode("ascii").strip(" \0") if isinstance(value, bytes) else value)
    if not math.isfinite(number) or number < 0:
        raise UnreadableFile(path, f"has {value!r} in ({tag[0]:04X},{tag[1]:04X})", "Expected a factor above zero.")
    return number or None


def _words(value: Any) -> Sequence[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)
