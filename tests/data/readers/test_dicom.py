import logging
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.readers import peek_image, read_image, reader_name

PIXELS = np.arange(35, dtype=np.uint16).reshape(5, 7)


@pytest.fixture
def radiograph(dicom, tmp_path):
    """Writes a radiograph with some tags and returns its path."""

    def write(pixels=PIXELS, edit=lambda found: None, modality="DX", **tags):
        found = dicom.with_pixels(dicom.dataset(modality), pixels, **tags)
        edit(found)
        return dicom.save(tmp_path / "image.dcm", found)

    return write


# One image a file


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_stored_values_keep_their_type(radiograph, dtype):
    pixels = (PIXELS.astype(np.int32) - (20 if np.dtype(dtype).kind == "i" else 0)).astype(dtype)
    image = read_image(radiograph(pixels))
    np.testing.assert_array_equal(image.values[..., 0], pixels)
    assert (image.values.dtype, image.spacing, image.unit) == (dtype, None, "")


def test_spacing_is_at_the_patient_else_at_the_detector(radiograph):
    assert read_image(radiograph(PixelSpacing=[0.2, 0.3], ImagerPixelSpacing=[0.4, 0.5])).spacing == (0.2, 0.3)
    assert read_image(radiograph(ImagerPixelSpacing=[0.4, 0.5])).spacing == (0.4, 0.5)
    with pytest.raises(UnreadableFile, match=r"has the PixelSpacing 0, 0.3"):
        read_image(radiograph(PixelSpacing=[0, 0.3]))


def test_rescale_gives_hounsfield_units(radiograph):
    image = read_image(radiograph(modality="CT", RescaleSlope=2, RescaleIntercept=-1024))
    np.testing.assert_array_equal(image.values[..., 0], 2.0 * PIXELS - 1024)
    assert (image.values.dtype, image.unit) == (np.float32, "HU")


def test_unused_high_bits_do_not_count(radiograph):
    """Old files keep an overlay in the four bits above the twelve of the image."""
    image = read_image(radiograph(PIXELS | 0xA000, BitsStored=12))
    np.testing.assert_array_equal(image.values[..., 0], PIXELS)
    signed = (PIXELS.astype(np.int16) - 20) & 0x0FFF
    image = read_image(radiograph(signed.astype(np.int16), BitsStored=12))
    np.testing.assert_array_equal(image.values[..., 0], PIXELS.astype(int) - 20)


@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": 0.5, "RescaleIntercept": 3}])
def test_monochrome1_is_inverted_within_its_stored_bits(radiograph, rescale):
    image = read_image(radiograph(BitsStored=10, PhotometricInterpretation="MONOCHROME1", **rescale))
    slope, intercept = rescale.get("RescaleSlope", 1), rescale.get("RescaleIntercept", 0)
    np.testing.assert_array_equal(image.values[..., 0], slope * (1023.0 - PIXELS) + intercept)


def test_monochrome1_with_sign(radiograph):
    pixels = (PIXELS.astype(np.int16) - 10).astype(np.int16)
    image = read_image(radiograph(pixels, BitsStored=10, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(image.values[..., 0], -1 - pixels)


def test_padding_takes_the_smallest_value_of_the_rest(radiograph):
    pixels = PIXELS.copy()
    pixels[0] = 0
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024, "modality": "CT", "PixelPaddingValue": 0}
    values = read_image(radiograph(pixels, **tags)).values[..., 0]
    assert (values[0] == 7 - 1024).all()
    np.testing.assert_array_equal(values[1:], PIXELS[1:] - 1024.0)
    values = read_image(radiograph(pixels, PixelPaddingRangeLimit=8, **tags)).values[..., 0]
    assert (values[0] == 9 - 1024).all()
    assert values[1, 0] == values[1, 1] == 9 - 1024


def test_negative_padding_that_is_written_without_sign(radiograph):
    """-2000 of a signed CT stands as 63536 in many files."""
    pixels = PIXELS.astype(np.int16)
    pixels[0] = -2000

    def edit(found):
        found.add_new("PixelPaddingValue", "US", 63536)

    values = read_image(radiograph(pixels, edit, modality="CT")).values[..., 0]
    assert (values[0] == 7).all()


def test_a_wholly_padded_image_stays_as_it_is(radiograph):
    values = read_image(radiograph(np.full((3, 3), 9, np.uint16), PixelPaddingValue=9)).values
    assert (values == 9).all()


def test_a_lookup_table_of_the_modality_is_applied(radiograph, dicom):
    table = dicom.items(
        {"LUTDescriptor": [35, 0, 16], "ModalityLUTType": "OD", "LUTData": np.arange(100, 135, dtype="<u2").tobytes()}
    )
    image = read_image(radiograph(ModalityLUTSequence=table))
    np.testing.assert_array_equal(image.values[..., 0], PIXELS + 100.0)
    assert image.values.dtype == np.float32


def test_colours_are_rgb(radiograph):
    pixels = np.arange(105, dtype=np.uint8).reshape(5, 7, 3)
    image = read_image(radiograph(pixels, modality="US", PhotometricInterpretation="RGB"))
    np.testing.assert_array_equal(image.values, pixels)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_every_uncompressed_transfer_syntax_gives_the_same(radiograph, syntax):
    def edit(found):
        found.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            found.PixelData = PIXELS.astype(">u2").tobytes()
            found["PixelData"].VR = "OW"

    image = read_image(radiograph(edit=edit))
    np.testing.assert_array_equal(image.values[..., 0], PIXELS)
    assert image.values.dtype.isnative


def test_run_length_coding_is_decoded(radiograph):
    image = read_image(radiograph(edit=lambda found: found.compress(RLELossless, generate_instance_uid=False)))
    np.testing.assert_array_equal(image.values[..., 0], PIXELS)


def test_a_compression_without_decoder_gives_the_install_command(radiograph):
    def edit(found):
        found.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.100")  # MPEG2: no still images
        found.PixelData = pydicom.encaps.encapsulate([b"\0" * 100])

    with pytest.raises(UnreadableFile, match=r'MPEG2[^`]*`pip install "pylibjpeg\[all\]"'):
        read_image(radiograph(edit=edit))


def test_a_deflated_bomb_is_refused(radiograph, monkeypatch):
    monkeypatch.setattr("fusion_jax.data.readers.dicom.LARGEST_INFLATED", 10**7)

    def edit(found):
        found.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    path = radiograph(np.zeros((10000, 10000), np.uint8), edit)
    with pytest.raises(UnreadableFile, match="unpacks to more than 10,000,000 bytes"):
        read_image(path)


def test_frames_without_positions_are_stacked_only_when_asked_for(radiograph):
    pixels = np.arange(105, dtype=np.uint8).reshape(3, 5, 7)
    path = radiograph(pixels, modality="US")
    with pytest.raises(UnreadableFile, match=r"holds 3 frames without positions.*frames='volume'"):
        read_image(path)
    image = read_image(path, frames="volume")
    np.testing.assert_array_equal(image.values[..., 0], pixels)
    assert (image.affine, image.spacing) == (None, None)


def test_frames_with_positions_are_a_volume(radiograph, dicom):
    """Enhanced CT, its frames stored from the head downwards."""
    pixels = np.arange(105, dtype=np.uint16).reshape(3, 5, 7)

    def edit(found):
        found.SharedFunctionalGroupsSequence = dicom.items(
            {
                "PlaneOrientationSequence": dicom.items({"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}),
                "PixelMeasuresSequence": dicom.items({"PixelSpacing": [0.5, 0.6]}),
                "PixelValueTransformationSequence": dicom.items({"RescaleSlope": 1, "RescaleIntercept": -1000}),
            }
        )
        found.PerFrameFunctionalGroupsSequence = dicom.items(
            *({"PlanePositionSequence": dicom.items({"ImagePositionPatient": [1, 2, 40 - 4 * k]})} for k in range(3))
        )

    image = read_image(radiograph(pixels, edit, modality="CT"))
    np.testing.assert_array_equal(image.values[..., 0], pixels[::-1] - 1000.0)
    assert (image.spacing, image.unit) == ((4.0, 0.5, 0.6), "HU")
    assert image.affine is not None
    np.testing.assert_allclose(image.affine[:3, 3], [-1, -2, 32])


def test_a_dicomdir_is_refused(radiograph):
    def edit(found):
        found.SOPClassUID = found.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"

    with pytest.raises(UnreadableFile, match=r"is a DICOMDIR, a list of files. Give the folder of one series"):
        read_image(radiograph(edit=edit))


def test_a_data_set_without_its_file_header_is_not_forced(tmp_path, radiograph):
    content = radiograph().read_bytes()
    (tmp_path / "raw.dcm").write_bytes(content[132:])
    with pytest.raises(UnreadableFile, match="is no DICOM file"):
        read_image(tmp_path / "raw.dcm")


def test_a_file_without_pixels_is_refused(radiograph):
    with pytest.raises(UnreadableFile, match="holds no pixel data"):
        read_image(radiograph(edit=lambda found: found.__delattr__("PixelData")))
    with pytest.raises(UnreadableFile, match="has no Rows: it is no image"):
        read_image(radiograph(edit=lambda found: found.__delattr__("Rows")))


def test_what_pydicom_warns_of_stays_inside(radiograph, capfd, caplog):
    def edit(found):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.add(pydicom.DataElement("PatientAge", "AS", "fifty", validation_mode=0))
            found.PixelData += b"\0" * 20

    path = radiograph(edit=edit)
    with caplog.at_level(logging.WARNING):
        read_image(path)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


# Series


VOLUME = np.arange(120, dtype=np.int16).reshape(4, 5, 6)


def test_slices_are_ordered_by_position_and_rescaled_each_by_its_own_tags(dicom, tmp_path):
    """Names, instance numbers and positions disagree on purpose: positions win."""
    slopes = [1.0, 0.5, 2.0, 0.25]

    def change(k, found):
        found.RescaleSlope, found.RescaleIntercept = slopes[k], -10 * k

    folder = dicom.write_slices(tmp_path, VOLUME, change=change, names=lambda k: f"{(k * 2) % 5}.dcm")
    image = read_image(folder)
    wanted = np.stack([VOLUME[k] * slopes[k] - 10 * k for k in range(4)])
    np.testing.assert_array_equal(image.values[..., 0], wanted)
    assert (image.values.dtype, image.spacing, image.unit) == (np.float32, (2.5, 0.5, 0.75), "HU")
    # LPS (-20, -30, 100) is RAS (20, 30, 100).
    wanted = [[0, 0, -0.75, 20], [0, -0.5, 0, 30], [2.5, 0, 0, 100], [0, 0, 0, 1]]
    np.testing.assert_allclose(image.affine, wanted)


@pytest.mark.parametrize(
    ("orientation", "axes"),
    [((0, 1, 0, 0, 0, -1), (1, 2, 0)), ((1, 0, 0, 0, 0, -1), (1, 0, 2))],
    ids=["sagittal", "coronal"],
)
def test_other_planes_become_canonical_and_agree_with_simpleitk(dicom, tmp_path, orientation, axes):
    import SimpleITK

    folder = dicom.write_slices(tmp_path, VOLUME, orientation=orientation, RescaleSlope=1, RescaleIntercept=0)
    image = read_image(folder)
    assert image.values.shape[:3] == tuple(np.array(VOLUME.shape)[list(axes)])
    files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    reference = SimpleITK.DICOMOrient(SimpleITK.ReadImage(files), "LPS")
    np.testing.assert_array_equal(image.values[..., 0], SimpleITK.GetArrayFromImage(reference))
    np.testing.assert_allclose(image.spacing, reference.GetSpacing()[::-1])
    assert image.affine is not None
    np.testing.assert_allclose(image.affine[:3, 3], np.array(reference.GetOrigin()) * [-1, -1, 1], atol=1e-5)
    assert image.values.dtype == np.int16


def test_a_list_of_files_is_a_series(dicom, tmp_path):
    folder = dicom.write_slices(tmp_path, VOLUME)
    files = sorted(folder.iterdir())
    np.testing.assert_array_equal(read_image(files[1:][::-1]).values[..., 0], VOLUME[1:])
    with pytest.raises(ValueError, match="empty list"):
        read_image([])


def test_several_series_are_listed_and_one_can_be_chosen(dicom, tmp_path):
    def other(k, found):
        found.SeriesInstanceUID, found.SeriesDescription = dicom.uid + "99", "Lung 1.0"

    dicom.write_slices(tmp_path, VOLUME)
    dicom.write_slices(tmp_path, VOLUME + 1, change=other, names="other_{}.dcm".format)
    with pytest.raises(
        UnreadableFile, match=r"holds 2 series: .*99 \(CT, Lung 1.0, 4 files\).*Choose one with `series`"
    ):
        read_image(tmp_path)
    np.testing.assert_array_equal(read_image(tmp_path, series=dicom.uid + "99").values[..., 0], VOLUME + 1)
    with pytest.raises(UnreadableFile, match=r"does not hold series 1.2.3"):
        read_image(tmp_path, series="1.2.3")


def test_a_missing_slice_is_named_with_its_neighbours(dicom, tmp_path):
    folder = dicom.write_slices(tmp_path, np.zeros((8, 5, 6), np.int16))
    (folder / "slice_003.dcm").unlink()
    (folder / "slice_004.dcm").unlink()
    with pytest.raises(
        UnreadableFile, match=r"slice_002.dcm and slice_005.dcm are 7.500 mm apart, .* 2.500 mm: 2 seem to be missing"
    ):
        read_image(folder)


def test_slices_at_uneven_distances_are_refused_beyond_the_tolerance(dicom, tmp_path):
    def change(k, found):
        found.ImagePositionPatient = [0, 0, 2.5 * k + (0.3 if k == 2 else 0)]

    folder = dicom.write_slices(tmp_path, VOLUME, change=change)
    with pytest.raises(UnreadableFile, match=r"slice_001.dcm and slice_002.dcm are 2.800 mm apart.*`tolerance_mm`"):
        read_image(folder)
    assert read_image(folder, tolerance_mm=0.35).spacing == pytest.approx((2.5, 0.5, 0.75))


def test_two_slices_in_one_place_are_named(dicom, tmp_path):
    def change(k, found):
        found.ImagePositionPatient = [0, 0, 2.5 * min(k, 2)]

    with pytest.raises(UnreadableFile, match=r"slice_002.dcm and slice_003.dcm lie in the same place"):
        read_image(dicom.write_slices(tmp_path, VOLUME, change=change))


def test_a_copied_file_is_named(dicom, tmp_path):
    folder = dicom.write_slices(tmp_path, VOLUME)
    (folder / "copy.dcm").write_bytes((folder / "slice_001.dcm").read_bytes())
    with pytest.raises(UnreadableFile, match=r"copy.dcm and slice_001.dcm are one image twice"):
        read_image(folder)


def test_a_localiser_among_the_slices_is_named(dicom, tmp_path):
    def change(k, found):
        if k == 3:
            found.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    with pytest.raises(UnreadableFile, match=r"slice_000.dcm and slice_003.dcm lie in different directions"):
        read_image(dicom.write_slices(tmp_path, VOLUME, change=change))


def test_slices_of_other_sizes_or_spacings_are_named(dicom, tmp_path):
    def change(k, found):
        if k == 2:
            found.PixelSpacing = [0.5, 0.9]

    with pytest.raises(UnreadableFile, match=r"pixels of \(0.5, 0.75\) mm, slice_002.dcm of \(0.5, 0.9\) mm"):
        read_image(dicom.write_slices(tmp_path / "a", VOLUME, change=change))
    dicom.write_slices(tmp_path / "b", VOLUME)
    dicom.write_slices(tmp_path / "b", VOLUME[:1, :4], origin=(-20, -30, 110), names="z{}.dcm".format)
    with pytest.raises(UnreadableFile, match=r"is 5 x 6 pixels, z0.dcm 4 x 6"):
        read_image(tmp_path / "b")


def test_gantry_tilt_is_refused_with_its_angle(dicom, tmp_path):
    def change(k, found):
        found.ImagePositionPatient = [0, 2.5 * k * np.tan(np.radians(15)), 2.5 * k]

    with pytest.raises(UnreadableFile, match=r"shifted against each other by up to 2.01 mm \(gantry tilt of 15.0°\)"):
        read_image(dicom.write_slices(tmp_path, VOLUME, change=change))


def test_one_slice_needs_its_thickness(dicom, tmp_path):
    folder = dicom.write_slices(tmp_path / "a", VOLUME[:1])
    assert read_image(folder).spacing == (2.5, 0.5, 0.75)

    def change(k, found):
        del found.SliceThickness

    with pytest.raises(UnreadableFile, match="is one slice and gives no thickness"):
        read_image(dicom.write_slices(tmp_path / "b", VOLUME[:1], change=change))


def test_files_of_another_kind_are_named_and_those_of_the_system_skipped(dicom, tmp_path):
    folder = dicom.write_slices(tmp_path, VOLUME)
    for name in (".DS_Store", "Thumbs.db", "DICOMDIR"):
        (folder / name).write_bytes(b"x")
    assert read_image(folder).values.shape == (4, 5, 6, 1)
    (folder / "report.pdf").write_bytes(b"%PDF")
    with pytest.raises(UnreadableFile, match=r"report.pdf: is no DICOM file"):
        read_image(folder)


def test_a_missing_tag_names_file_and_tag(dicom, tmp_path):
    def change(k, found):
        if k == 1:
            del found.ImagePositionPatient

    with pytest.raises(UnreadableFile, match=r"slice_001.dcm: has no ImagePositionPatient"):
        read_image(dicom.write_slices(tmp_path, VOLUME, change=change))


def test_the_limit_counts_the_whole_series(dicom, tmp_path):
    folder = dicom.write_slices(tmp_path, VOLUME)
    with pytest.raises(UnreadableFile, match="4 x 5 x 6 x 1 = 120 values, more than the limit of 100"):
        peek_image(folder, max_voxels=100)


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm"])
def test_a_file_that_is_also_tiff_is_dicom(name):
    """Both files of pydicom carry the header of a TIFF file in their preamble."""
    from pydicom.data import get_testdata_file

    path = str(get_testdata_file(name))
    assert reader_name(path) == "dicom"
    assert read_image(path).values.shape[2] == 1
