"""What in a DICOM file tells who the patient is."""

import os
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fusion_jax.data.readers.dicom import read_dataset
from fusion_jax.data.readers.guard import reading

if TYPE_CHECKING:
    import pydicom

__all__ = ["personal_tags"]

IDENTIFYING = (
    "AccessionNumber",
    "AdditionalPatientHistory",
    "CountryOfResidence",
    "CurrentPatientLocation",
    "InstitutionAddress",
    "InstitutionName",
    "InstitutionalDepartmentName",
    "InsurancePlanIdentification",
    "IssuerOfPatientID",
    "MedicalRecordLocator",
    "MilitaryRank",
    "Occupation",
    "OtherPatientIDs",
    "PatientAddress",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientComments",
    "PatientInstitutionResidence",
    "PatientReligiousPreference",
    "PatientTelephoneNumbers",
    "PatientTelecomInformation",
    "PersonAddress",
    "PersonTelephoneNumbers",
    "ReferringPhysicianAddress",
    "ReferringPhysicianTelephoneNumbers",
    "RegionOfResidence",
    "RequestingService",
    "ResponsibleOrganization",
    "StationName",
)
"""Elements that the basic profile of PS3.15 removes or replaces and that name a person or a place."""

ANONYMISED = re.compile(
    r"""(?ix)
    \W* (anon(ym\w*)?\d* | de-?identif\w* | removed? | redacted | deleted | masked | hidden | pseudo\w* | unknown | none
       | null | n/?a | no\s?name | not\s(available|known|given) | test | phantom | x+ | 0+ | \W* ) (\W .*)?
    """
)

PLACEHOLDER_DATES = ("00010101", "19000101", "18000101", "10000101", "20000101", "99991231")


def personal_tags(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the elements of a DICOM file that may tell who the patient is.

    All names of persons, the elements in `IDENTIFYING`, a PatientID that looks like a name or a date,
    BurnedInAnnotation YES, and private elements unless the file says that the patient's identity was removed. Empty
    values and those that say themselves that something was removed do not count, nor a PatientName that only repeats
    the PatientID. It helps to find what was forgotten and proves nothing: dates, device numbers, free text and faces
    stay.

    Raises:
      UnreadableFile: no DICOM file, or damaged.
      ImportError: pydicom is not installed.

    Example:
      >>> personal_tags("slice_001.dcm")  # doctest: +SKIP
      ('InstitutionName', 'PatientBirthDate', 'PatientName')

    References:
      DICOM PS3.15 Annex E, Table E.1-1.
    """
    dataset = read_dataset(path, pixels=False)
    with reading(path):
        found: set[str] = set()
        _collect(dataset, found, identity_removed=str(dataset.get("PatientIdentityRemoved") or "") == "YES")
        name, number = str(dataset.get("PatientName") or ""), str(dataset.get("PatientID") or "")
        if name and name == number and not _looks_personal(number):
            found.discard("PatientName")
        return tuple(sorted(found))


def _collect(dataset: "pydicom.Dataset", found: set[str], *, identity_removed: bool) -> None:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value or []:
                _collect(item, found, identity_removed=identity_removed)
            continue
        if element.tag.is_private:
            if element.tag.is_private_creator and not identity_removed:
                found.add(f"private elements of {element.value}")
            continue
        text = _text(element.value)
        if ANONYMISED.fullmatch(text) or text in PLACEHOLDER_DATES:
            continue
        keyword = element.keyword
        personal = (
            element.VR == "PN"
            or keyword in IDENTIFYING
            or (keyword == "PatientID" and _looks_personal(text))
            or (keyword == "BurnedInAnnotation" and text == "YES")
        )
        if personal and keyword:
            found.add(keyword)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue":
        return " ".join(map(str, value)).strip()
    return str(value).strip()


def _looks_personal(text: str) -> bool:
    """A name (`MILLER^ANNA`, `Miller, Anna`, `Anna Miller`) or a date."""
    if "^" in text.strip("^") or re.fullmatch(r"[^\W\d_]{2,}\s*,?\s+[^\W\d_]{2,}", text):
        return True
    digits = re.sub(r"[-./ ]", "", text)
    if not re.fullmatch(r"\d{8}", digits):
        return False
    for layout in ("%Y%m%d", "%d%m%Y", "%m%d%Y"):
        try:
            if 1900 <= datetime.strptime(digits, layout).year <= datetime.now().year:
                return True
        except ValueError:
            continue
    return False
