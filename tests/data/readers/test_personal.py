import numpy as np
import pytest

from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.readers import personal_tags


@pytest.fixture
def tags_of(dicom, tmp_path):
    def tags_of(edit=lambda found: None, **tags):
        found = dicom.with_pixels(dicom.dataset("DX", **tags), np.zeros((3, 3), np.uint8))
        edit(found)
        return personal_tags(dicom.save(tmp_path / "a.dcm", found))

    return tags_of


def test_a_file_without_personal_data_has_none(tags_of):
    assert tags_of() == ()
    assert tags_of(PatientName="", PatientID="STS_001", PatientSex="F", PatientAge="052Y", Manufacturer="GE") == ()


def test_names_dates_and_addresses_are_found(tags_of):
    tags = {
        "PatientName": "Miller^Anna",
        "PatientBirthDate": "19521003",
        "PatientAddress": "1 High Street",
        "OtherPatientIDs": ["12", "13"],
        "InstitutionAddress": "2 Hospital Road",
        "ReferringPhysicianName": "House^Gregory",
        "BurnedInAnnotation": "YES",
    }
    assert tags_of(**tags) == tuple(sorted(tags))


def test_names_inside_sequences_are_found(tags_of, dicom):
    sequence = dicom.items({"PersonName": "Miller^Anna", "InstitutionName": "City Hospital"})
    assert tags_of(ReferencedPatientSequence=sequence) == ("InstitutionName", "PersonName")


@pytest.mark.parametrize(
    "name",
    ["Anonymous", "ANON^PATIENT", "anonymized", "De-identified", "REMOVED", "XXXX", "0000", "^", "None", "UNKNOWN"],
)
def test_values_that_say_they_were_removed_do_not_count(tags_of, name):
    assert tags_of(PatientName=name, InstitutionName=name, PatientBirthDate="19000101") == ()


@pytest.mark.parametrize("name", ["Anonby^Lars", "Nonesuch^Ann", "Xander^Max", "Testa^Maria", "Removski^Jan"])
def test_names_that_only_begin_like_such_words_count(tags_of, name):
    assert tags_of(PatientName=name) == ("PatientName",)


def test_a_name_that_repeats_the_pseudonym_does_not_count(tags_of):
    assert tags_of(PatientName="STS_001", PatientID="STS_001") == ()
    assert tags_of(PatientName="Miller", PatientID="STS_001") == ("PatientName",)


@pytest.mark.parametrize(
    ("number", "personal"),
    [
        ("MILLER^ANNA", True),
        ("Miller, Anna", True),
        ("Anna Miller", True),
        ("19521003", True),
        ("03.10.1952", True),
        ("STS_001", False),
        ("00412345", False),
        ("99999999", False),
        ("TCGA-AA-1234", False),
    ],
)
def test_a_patient_id_counts_where_it_is_a_name_or_a_date(tags_of, number, personal):
    assert tags_of(PatientID=number) == (("PatientID",) if personal else ())


def test_private_elements_count_unless_the_identity_was_removed(tags_of):
    def private(found):
        found.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(1, "LO", "Anna Miller")

    assert tags_of(private) == ("private elements of SIEMENS CSA HEADER",)
    assert tags_of(private, PatientIdentityRemoved="YES") == ()


def test_another_file_is_refused(tmp_path):
    (tmp_path / "a.dcm").write_text("text")
    with pytest.raises(UnreadableFile):
        personal_tags(tmp_path / "a.dcm")
