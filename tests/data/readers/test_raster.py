import importlib.util
import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.readers import peek_image, read_image


def grey(dtype, shape=(5, 7)):
    return (np.arange(np.prod(shape)) * (np.iinfo(dtype).max // 40)).astype(dtype).reshape(shape)


# PNG


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_png_keeps_every_bit(tmp_path, dtype):
    Image.fromarray(grey(dtype)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image.values[..., 0], grey(dtype))
    assert image.values.dtype == dtype
    assert (image.spacing, image.affine, image.unit) == (None, None, "")


def test_rgb_png_has_three_channels(tmp_path):
    values = grey(np.uint8, (5, 7, 3))
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").values, values)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_constant_alpha_is_left_out_and_varying_alpha_refused(tmp_path, mode):
    values = grey(np.uint8, (5, 7, len(mode)))
    values[..., -1] = 255
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").values, values[..., :-1])
    values[2, 3, -1] = 0
    Image.fromarray(values).save(tmp_path / "a.png")
    with pytest.raises(
        UnreadableFile, match=r"alpha channel that varies \(0 to 255\). Put the image on its background"
    ):
        read_image(tmp_path / "a.png")


def test_a_transparent_colour_counts_as_alpha(tmp_path):
    Image.fromarray(grey(np.uint8)).save(tmp_path / "a.png", transparency=0)
    with pytest.raises(UnreadableFile, match="alpha"):
        read_image(tmp_path / "a.png")
    Image.fromarray(grey(np.uint8)).save(tmp_path / "b.png", transparency=1)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png").values[..., 0], grey(np.uint8))


def test_a_palette_gives_its_colours_or_its_numbers(tmp_path):
    index = np.array([[0, 1], [2, 1]], np.uint8)
    colours = np.array([[0, 0, 0], [255, 10, 20], [30, 255, 40]], np.uint8)
    image = Image.new("P", (2, 2))
    image.putdata(index.ravel().tolist())
    image.putpalette(colours.ravel().tolist())
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").values, colours[index])
    labels = read_image(tmp_path / "a.png", palette="index")
    np.testing.assert_array_equal(labels.values[..., 0], index)
    assert peek_image(tmp_path / "a.png", palette="index").shape == (2, 2, 1)
    with pytest.raises(ValueError, match="palette is 'labels'; expected one of 'colour', 'index'"):
        read_image(tmp_path / "a.png", palette="labels")


def test_one_bit_png_is_black_and_white(tmp_path):
    Image.fromarray(np.array([[True, False, True]])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").values[..., 0], [[255, 0, 255]])


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, kind: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(pixels)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_colour_of_16_bit_is_refused_because_half_would_be_lost(tmp_path):
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, b"\0" + bytes(range(12))))
    with pytest.raises(UnreadableFile, match=r"16-bit colour, of which Pillow would keep half. Save it as TIFF"):
        read_image(tmp_path / "a.png")


def test_a_bomb_is_refused_from_its_header(tmp_path):
    (tmp_path / "a.png").write_bytes(png(60000, 60000, 8, 0, b"\0" * 1000))
    with pytest.raises(UnreadableFile, match=r"60000 x 60000 x 1 = 3,600,000,000 values, more than the limit"):
        read_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(png(16000, 16000, 8, 0, b"\0" * 1000))
    with pytest.raises(UnreadableFile, match=r"256,000,000 bytes of values, which \d+ bytes cannot hold"):
        read_image(tmp_path / "b.png")


def test_a_flipped_bit_in_the_pixels_of_a_png_is_found(tmp_path):
    content = bytearray(png(7, 5, 8, 0, b"".join(b"\0" + bytes(range(7)) for _ in range(5))))
    content[content.index(b"IDAT") + 8] ^= 1
    (tmp_path / "a.png").write_bytes(bytes(content))
    with pytest.raises(UnreadableFile, match="fails the checksum of its part b'IDAT'"):
        read_image(tmp_path / "a.png")


def test_an_animation_is_refused(tmp_path):
    first = Image.fromarray(grey(np.uint8))
    first.save(tmp_path / "a.png", save_all=True, append_images=[Image.fromarray(grey(np.uint8) + 1)])
    with pytest.raises(UnreadableFile, match="animation of 2 images"):
        read_image(tmp_path / "a.png")


def test_the_limit_of_pillow_does_not_apply(tmp_path, monkeypatch):
    Image.fromarray(grey(np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(grey(np.uint8)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    assert read_image(tmp_path / "a.png").values.shape == read_image(tmp_path / "a.jpg").values.shape == (5, 7, 1)


def test_a_bomb_of_text_is_refused(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * 70_000_000, zip=True)
    Image.fromarray(grey(np.uint8)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(UnreadableFile, match="cannot be decoded"):
        read_image(tmp_path / "a.png")


# JPEG


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path, orientation):
    """A bright corner, stored turned as the camera would, comes back to the upper left."""
    upright = np.zeros((16, 24), np.uint8)
    upright[:8, :8] = 255
    undo = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(undo(upright))).save(tmp_path / "a.jpg", quality=100, exif=exif)
    values = read_image(tmp_path / "a.jpg").values
    assert values.shape == peek_image(tmp_path / "a.jpg").shape == (16, 24, 1)
    np.testing.assert_allclose(values[..., 0].astype(int), upright, atol=3)


def test_jpeg_colours_are_rgb(tmp_path):
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 250
    Image.fromarray(red).save(tmp_path / "a.jpg", quality=100)
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg").values.astype(int), red, atol=3)


def test_cmyk_jpeg_is_refused(tmp_path):
    Image.new("CMYK", (8, 8)).save(tmp_path / "a.jpg")
    with pytest.raises(UnreadableFile, match=r"holds the colours CMYK. Save it as grey or RGB"):
        read_image(tmp_path / "a.jpg")


# TIFF


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib"}, {"byteorder": ">"}, {"bigtiff": True}, {"tile": (16, 16)}]
)
def test_tiff_keeps_every_value(tmp_path, dtype, options):
    values = np.arange(35).astype(dtype).reshape(5, 7)
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.values[..., 0], values)
    assert image.values.dtype == dtype
    assert image.spacing is None


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_rgb_tiff_of_16_bit(tmp_path, planar):
    values = grey(np.uint16, (5, 7, 3))
    stored = values if planar == "contig" else np.moveaxis(values, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").values, values)


def test_constant_alpha_of_a_tiff_is_left_out(tmp_path):
    values = grey(np.uint8, (5, 7, 4))
    values[..., 3] = 255
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").values, values[..., :3])
    values[0, 0, 3] = 7
    tifffile.imwrite(tmp_path / "b.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    with pytest.raises(UnreadableFile, match=r"varies \(7 to 255\)"):
        read_image(tmp_path / "b.tif")


def test_white_is_zero_is_inverted(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", grey(np.uint8), photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").values[..., 0], 255 - grey(np.uint8))


def test_a_palette_tiff(tmp_path):
    index = np.array([[0, 1], [2, 1]], np.uint8)
    colours = np.zeros((3, 256), np.uint16)
    colours[:, :3] = [[0, 10, 20], [30, 40, 50], [60, 70, 80]]
    tifffile.imwrite(tmp_path / "a.tif", index, photometric="palette", colormap=colours)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").values, np.moveaxis(colours, 0, -1)[index])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", palette="index").values[..., 0], index)


def test_pages_are_a_volume_only_when_asked_for(tmp_path):
    values = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    with pytest.raises(UnreadableFile, match=r"holds 3 pages. Read them as a volume with `pages='volume'`"):
        read_image(tmp_path / "a.tif")
    volume = read_image(tmp_path / "a.tif", pages="volume")
    np.testing.assert_array_equal(volume.values[..., 0], values)
    assert volume.affine is None
    assert peek_image(tmp_path / "a.tif", pages="volume").shape == (3, 4, 5, 1)


def test_pages_of_different_shapes_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(np.zeros((4, 5), np.uint8))
        file.write(np.zeros((2, 3), np.uint8))
    with pytest.raises(UnreadableFile, match=r"page 2 is \(2, 3, 1\) uint8, page 1 is \(4, 5, 1\) uint8"):
        read_image(tmp_path / "a.tif", pages="volume")


def test_a_missing_codec_gives_the_install_command(tmp_path):
    Image.fromarray(grey(np.uint8)).save(tmp_path / "a.tif", compression="tiff_lzw")
    if importlib.util.find_spec("imagecodecs"):
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif").values[..., 0], grey(np.uint8))
        return
    with pytest.raises(UnreadableFile, match=r"compressed by LZW.*`pip install imagecodecs`"):
        read_image(tmp_path / "a.tif")


def test_a_strip_that_unpacks_to_more_than_its_page_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fusion_jax.data.readers.tiff.SUSPICIOUS_BYTES", 1000)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.uint8), compression="zlib")
    bomb = zlib.compress(b"\0" * 10_000_000)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        tags = file.pages[0].tags
        at, count = tags["StripOffsets"], tags["StripByteCounts"]
        places = [(at.valueoffset, len(content)), (count.valueoffset, len(bomb))]
        lengths = {at.valueoffset: at.dtype, count.valueoffset: count.dtype}
    for place, value in places:
        width = 2 if int(lengths[place]) == 3 else 4
        content[place : place + width] = value.to_bytes(width, "little")
    (tmp_path / "a.tif").write_bytes(bytes(content) + bomb)
    with pytest.raises(UnreadableFile, match="unpacks to more than the 64 bytes of its page"):
        read_image(tmp_path / "a.tif")


# Archives


@pytest.fixture
def archive(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(grey(np.uint8)).save(buffer, "png")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        file.writestr("folder/a.png", buffer.getvalue())
        file.writestr("empty.png", b"")
    return tmp_path / "images.zip"


def test_a_member_of_an_archive_is_read_in_place(archive):
    path = f"{archive}!folder/a.png"
    np.testing.assert_array_equal(read_image(path).values[..., 0], grey(np.uint8))
    assert peek_image(path).shape == (5, 7, 1)
    assert [file.name for file in archive.parent.iterdir()] == ["images.zip"]


def test_a_missing_member_names_the_archive(archive):
    with pytest.raises(FileNotFoundError, match=r"not among the 2 members of .*images.zip, such as"):
        read_image(f"{archive}!b.png")
    with pytest.raises(FileNotFoundError):
        read_image(f"{archive.with_name('other.zip')}!b.png")


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "a/../../b.png", ""])
def test_names_that_lead_out_of_an_archive_are_refused(archive, name):
    with pytest.raises(UnreadableFile, match="is no name inside an archive"):
        read_image(f"{archive}!{name}")


def test_an_empty_member_and_a_broken_archive_are_refused(archive):
    with pytest.raises(UnreadableFile, match="empty"):
        read_image(f"{archive}!empty.png")
    content = bytearray(archive.read_bytes())
    content[content.index(b"IDAT") + 10] ^= 255
    archive.write_bytes(bytes(content))
    with pytest.raises(UnreadableFile, match="CRC-32"):
        read_image(f"{archive}!folder/a.png")


def test_an_archive_that_was_replaced_is_read_anew(archive):
    read_image(f"{archive}!folder/a.png")
    buffer = io.BytesIO()
    Image.fromarray(grey(np.uint8)[::-1]).save(buffer, "png")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("folder/a.png", buffer.getvalue())
    np.testing.assert_array_equal(read_image(f"{archive}!folder/a.png").values[..., 0], grey(np.uint8)[::-1])
