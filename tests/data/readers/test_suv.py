import math
import warnings

import numpy as np
import pytest

from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.readers import peek_image, read_image, suv_bodyweight, suv_bodyweight_factor

HALF_LIFE = 6586.2  # fluorine-18, s
VOLUME = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


@pytest.fixture
def pet(dicom, tmp_path):
    """Writes a PET series of three slices and returns its folder; tracer tags are given under their own names."""

    def write(tracer=None, change=lambda k, found: None, **tags):
        values = {
            "Units": "BQML",
            "CorrectedImage": ["ATTN", "DECY", "SCAT"],
            "DecayCorrection": "START",
            "PatientWeight": 70,
            "SeriesDate": "20200131",
            "SeriesTime": "101500",
            "AcquisitionDate": "20200131",
            "AcquisitionTime": "101500.25",
            "ActualFrameDuration": 180_000,
        } | tags
        injected = {
            "RadionuclideTotalDose": 350e6,
            "RadionuclideHalfLife": HALF_LIFE,
            "RadiopharmaceuticalStartTime": "091500.00",
        } | (tracer or {})

        def edit(k, found):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydicom warns of the wrong ones among them
                for name, value in values.items():
                    if value is not None:
                        setattr(found, name, value)
            found.RadiopharmaceuticalInformationSequence = dicom.items(
                {name: value for name, value in injected.items() if value is not None}
            )
            change(k, found)

        return dicom.write_slices(tmp_path, VOLUME, modality="PT", change=edit, RescaleSlope=1000, RescaleIntercept=0)

    return write


def expected(elapsed_s, weight=70.0, dose=350e6):
    return 1000 * weight / (dose * math.exp(-math.log(2) * elapsed_s / HALF_LIFE))


def factor(folder):
    """What the values of the file were multiplied by."""
    values = read_image(folder, suv=True).values[..., 0]
    ratio = values[VOLUME > 0] / (1000.0 * VOLUME[VOLUME > 0])
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    return ratio[0]


def test_the_dose_decays_from_injection_to_the_start_of_the_scan(pet):
    assert factor(pet()) == pytest.approx(expected(3600), rel=1e-6)


def test_the_result_is_suv_in_float32(pet):
    folder = pet()
    assert peek_image(folder, suv=True).unit == read_image(folder, suv=True).unit == "SUV"
    assert peek_image(folder, suv=True).dtype == np.float32
    plain = read_image(folder)
    assert plain.unit == "Bq/ml"
    np.testing.assert_array_equal(plain.values[..., 0], 1000.0 * VOLUME)


def test_activity_spread_evenly_over_the_body_has_suv_one():
    """350 MBq in 70 kg are 5 kBq/g at the injection and 2.5 kBq/g a half-life later."""
    assert 5000 * suv_bodyweight(70, 350e6, HALF_LIFE, 0) == pytest.approx(1)
    assert 2500 * suv_bodyweight(70, 350e6, HALF_LIFE, HALF_LIFE) == pytest.approx(1)


def test_decay_corrected_to_the_injection_needs_no_times(pet):
    assert factor(pet(DecayCorrection="ADMIN", SeriesTime=None, AcquisitionTime=None)) == pytest.approx(
        expected(0), rel=1e-6
    )


def test_without_decay_correction_every_slice_has_its_own_time(pet):
    """Beds are scanned one after the other; activity is the mean over the frame."""

    def change(k, found):
        found.AcquisitionTime = f"10{15 + 3 * k}00"

    folder = pet(change=change, DecayCorrection="NONE", CorrectedImage=["ATTN", "SCAT"])
    values = read_image(folder, suv=True).values[..., 0]
    rate = math.log(2) / HALF_LIFE
    mean = (1 - math.exp(-rate * 180)) / (rate * 180)
    for k in range(3):
        wanted = 1000.0 * VOLUME[k] * expected(3600 + 180 * k) / mean
        np.testing.assert_allclose(values[k], wanted, rtol=1e-6)


def test_the_date_and_time_of_injection_go_before_its_time_alone(pet):
    tracer = {"RadiopharmaceuticalStartDateTime": "20200131084500.00", "RadiopharmaceuticalStartTime": "010000"}
    assert factor(pet(tracer)) == pytest.approx(expected(5400), rel=1e-6)


def test_an_injection_before_midnight(pet):
    tracer = {"RadiopharmaceuticalStartTime": "233000"}
    times = {"SeriesTime": "003000", "AcquisitionTime": "003000"}
    assert factor(pet(tracer, **times)) == pytest.approx(expected(3600), rel=1e-6)


def test_a_series_processed_later_takes_the_start_of_the_scan_from_ge(pet):
    def change(k, found):
        block = found.private_block(0x0009, "GEMS_PETD_01", create=True)
        block.add_new(0x0D, "DT", "20200131101500.00")

    folder = pet(change=change, SeriesTime="140000", AcquisitionTime="101700")
    assert factor(folder) == pytest.approx(expected(3600), rel=1e-6)


def test_a_series_processed_later_takes_the_start_of_the_scan_from_its_frames(pet):
    """FrameReferenceTime of the first bed is the moment of its mean activity, counted from the start of the scan."""
    rate = math.log(2) / HALF_LIFE
    at_mean = math.log(rate * 180 / (1 - math.exp(-rate * 180))) / rate
    assert at_mean == pytest.approx(90 - rate * 180**2 / 24, abs=1e-4)  # before the middle

    def change(k, found):
        found.AcquisitionTime = f"10{17 + 3 * k}00"
        found.FrameReferenceTime = 1000 * (120 + 180 * k + at_mean)

    assert factor(pet(change=change, SeriesTime="140000")) == pytest.approx(expected(3600), rel=1e-6)
    with pytest.raises(UnreadableFile, match=r"SeriesTime \(14:00:00\) after its first AcquisitionTime \(10:15:00\)"):
        read_image(pet(SeriesTime="140000"), suv=True)


def test_counts_of_philips(pet):
    def philips(element, value):
        def change(k, found):
            block = found.private_block(0x7053, "Philips PET Private Group", create=True)
            block.add_new(element, "DS", value)

        return change

    assert factor(pet(change=philips(0x00, 0.002), Units="CNTS")) == pytest.approx(0.002, rel=1e-6)
    assert factor(pet(change=philips(0x09, 2.5), Units="CNTS")) == pytest.approx(2.5 * expected(3600), rel=1e-6)
    with pytest.raises(UnreadableFile, match=r"neither \(7053,1000\) nor \(7053,1009\)"):
        read_image(pet(Units="CNTS"), suv=True)


def test_values_in_grams_per_millilitre_are_suv_already(pet):
    assert factor(pet(Units="GML")) == pytest.approx(1)
    assert read_image(pet(Units="GML")).unit == "SUV"
    with pytest.raises(UnreadableFile, match="holds SUV by LBM"):
        read_image(pet(Units="GML", SUVType="LBM"), suv=True)


@pytest.mark.parametrize(
    ("tags", "tracer", "words"),
    [
        ({"PatientWeight": None}, {}, "has no PatientWeight"),
        ({"PatientWeight": 0}, {}, "has PatientWeight"),
        ({"Units": "PROPCNTS"}, {}, "has the Units PROPCNTS"),
        ({"Units": None}, {}, r"has the Units \(none\)"),
        ({"DecayCorrection": None}, {}, r"has the DecayCorrection \(none\)"),
        ({"CorrectedImage": ["DECY"]}, {}, "not corrected for attenuation"),
        ({"CorrectedImage": ["ATTN"]}, {}, "One of them is wrong"),
        ({"SeriesTime": None}, {}, "has no SeriesTime"),
        ({"AcquisitionDate": None}, {}, "has no AcquisitionDate"),
        ({"SeriesTime": "10h15"}, {}, "'2020013110h15' in SeriesDate and SeriesTime"),
        ({}, {"RadionuclideTotalDose": None}, "has no RadionuclideTotalDose"),
        ({}, {"RadionuclideHalfLife": None}, "has no RadionuclideHalfLife"),
        ({}, {"RadiopharmaceuticalStartTime": None}, "neither RadiopharmaceuticalStartDateTime nor"),
        ({}, {"RadiopharmaceuticalStartDateTime": "20190131091500"}, "Dates and times of injection and scan do not"),
        ({}, {"RadiopharmaceuticalStartDateTime": "20200131111500"}, "was scanned -1.00 h after the injection"),
    ],
)
def test_a_tag_that_is_missing_or_wrong_is_named_with_its_file(pet, tags, tracer, words):
    with pytest.raises(UnreadableFile, match=rf"slice_00\d.dcm: .*{words}"):
        read_image(pet(tracer, **tags), suv=True)


def test_only_pet_has_suv(dicom, tmp_path):
    folder = dicom.write_slices(tmp_path, VOLUME)
    with pytest.raises(UnreadableFile, match=r"has the Modality CT. SUV is for PET"):
        read_image(folder, suv=True)
    tags = {"Units": "BQML", "CorrectedImage": ["ATTN", "DECY"], "DecayCorrection": "ADMIN", "PatientWeight": 70}
    with pytest.raises(UnreadableFile, match="RadiopharmaceuticalInformationSequence"):
        suv_bodyweight_factor("a.dcm", dicom.dataset("PT", **tags))
