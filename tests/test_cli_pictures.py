"""Picture files of all sorts are read as what they show, or refused with the reason; all files are made here."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from lrphooks.cli.command import CommandError
from lrphooks.cli.pictures import MOST_PIXELS, read

#: Red, green, blue and yellow quarters, so that a turn or an inversion shows.
QUARTERS = np.zeros((40, 60, 3), dtype=np.uint8)
QUARTERS[:20, :30], QUARTERS[:20, 30:], QUARTERS[20:, :30] = (200, 30, 30), (30, 200, 30), (30, 30, 200)
QUARTERS[20:, 30:] = (200, 200, 30)
PICTURE = Image.fromarray(QUARTERS)
GREY = np.arange(40 * 60, dtype=np.uint32).reshape(40, 60)


def saved(path, picture, **options):
    picture.save(path, **options)
    return path


def corners(picture):
    """The colours of the four quarters."""
    array = np.asarray(picture.convert("RGB")).astype(int)
    rows, columns = array.shape[0] // 4, array.shape[1] // 4
    return np.stack([array[y, x] for y in (rows, 3 * rows) for x in (columns, 3 * columns)])


@pytest.mark.parametrize(
    ("name", "mode", "tolerance"),
    [
        ("plain.png", "RGB", 0),
        ("palette.png", "P", 3),
        ("palette.gif", "P", 3),
        ("alpha.png", "RGBA", 0),
        ("photo.jpg", "RGB", 12),
        ("print.jpg", "CMYK", 12),
        ("print.tif", "CMYK", 2),
        ("video.tif", "YCbCr", 4),
        ("photo.webp", "RGB", 12),
        ("photo.bmp", "RGB", 0),
    ],
)
def test_colours_are_what_they_look_like(name, mode, tolerance, tmp_path):
    """CMYK as JPEG is stored inverted, as Adobe's programs do."""
    options = {"quality": 95} if name.endswith(("jpg", "webp")) else {}
    stored = PICTURE.quantize(4) if mode == "P" else PICTURE.convert(mode)
    path = saved(tmp_path / name, stored, **options)
    if mode == "YCbCr":
        try:
            Image.open(path).load()
        except OSError:
            pytest.skip("this Pillow (12.3 is one) cannot read the YCbCr in TIFF that it writes")
    picture = read(path)
    assert picture.image.mode == "RGB"
    assert picture.image.size == (60, 40)
    assert np.abs(corners(picture.image) - corners(PICTURE)).max() <= tolerance


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_16_bits_are_scaled(name, tmp_path):
    values = (GREY * (65535 // GREY.max())).astype(np.uint16)
    picture = read(saved(tmp_path / name, Image.fromarray(values)))
    assert picture.image.mode == "L"
    assert np.abs(np.asarray(picture.image) - values / 257).max() <= 0.5
    assert "16 bits a pixel as 8" in picture.notes


def test_fractions_from_0_to_1(tmp_path):
    values = (GREY / GREY.max()).astype(np.float32)
    picture = read(saved(tmp_path / "fractions.tif", Image.fromarray(values)))
    assert np.abs(np.asarray(picture.image) - values * 255).max() <= 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((GREY * 1000).astype(np.int32), "32 bits a pixel, from 0 to 2399000"),
        ((GREY % 256).astype(np.int32), "32 bits a pixel, from 0 to 255"),
        (GREY.astype(np.float32), "fractions from 0 to 2399 as pixels"),
    ],
)
def test_numbers_without_black_and_white_are_refused(values, message, tmp_path):
    with pytest.raises(CommandError, match=message):
        read(saved(tmp_path / "numbers.tif", Image.fromarray(values)))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
def test_what_is_transparent_is_white(mode, tmp_path):
    picture = PICTURE.convert("LA" if mode == "LA" else "RGBA")
    picture.putalpha(Image.fromarray(np.where(np.arange(60) < 30, 0, 255).astype(np.uint8)[None].repeat(40, 0)))
    suffix = "tif" if mode == "PA" else "png"
    found = read(saved(tmp_path / f"clear.{suffix}", picture))
    seen = corners(found.image)
    assert (seen[[0, 2]] == 255).all()
    assert (seen[[1, 3]] < 255).any()
    assert "transparent parts on white" in found.notes


def test_a_transparent_colour_of_a_palette_is_white(tmp_path):
    picture = PICTURE.quantize(4)
    colour = picture.getpixel((0, 0))
    found = read(saved(tmp_path / "clear.gif", picture, transparency=colour))
    assert (corners(found.image)[0] == 255).all()


def test_one_bit(tmp_path):
    found = read(saved(tmp_path / "bits.png", Image.fromarray(QUARTERS[..., 0] > 100)))
    assert found.image.mode == "L"
    assert corners(found.image)[:, 0].tolist() == [255, 0, 0, 255]


#: How the stored picture has to be turned so that it is upright, by the number of EXIF.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", [1, *TURNS])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_turned_photograph_is_upright(orientation, suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = PICTURE.transpose(TURNS[orientation]) if orientation != 1 else PICTURE
    found = read(saved(tmp_path / f"turned.{suffix}", stored, exif=exif, quality=95))
    assert found.image.size == (60, 40)
    assert np.abs(corners(found.image) - corners(PICTURE)).max() <= 12
    assert ("turned upright" in found.notes) == (orientation != 1)


def test_broken_exif_is_left_out(tmp_path):
    path = saved(
        tmp_path / "broken.jpg", PICTURE, quality=95, exif=b"Exif\x00\x00" + b"MM\x00*\xff\xff\xff\xff garbage"
    )
    found = read(path)
    assert np.abs(corners(found.image) - corners(PICTURE)).max() <= 12


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_several_frames_the_first(suffix, tmp_path):
    others = [Image.new("RGB", (60, 40), colour) for colour in ("black", "white")]
    found = read(saved(tmp_path / f"moving.{suffix}", PICTURE, save_all=True, append_images=others))
    assert np.abs(corners(found.image) - corners(PICTURE)).max() <= 20
    assert "the first of 3 frames" in found.notes


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, data=b""):
    """A PNG that says that it is so large, whatever its data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (MOST_PIXELS + 1, 1)])
def test_an_enormous_picture_is_refused_before_it_fills_the_memory(width, height, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(width, height))
    with pytest.raises(CommandError, match=r"bomb\.png has more than 178 million pixels, which would fill the memory"):
        read(path)


def test_a_large_picture_is_no_enormous_one(tmp_path):
    """Pillow warns of half as many pixels as it refuses."""
    side = 9_500
    path = tmp_path / "large.png"
    path.write_bytes(png(side, side, bytes((side + 1) * side)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(path).image.size == (side, side)


def whole(**options):
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.png", b"", "the file is empty"),
        ("text.png", b"this is no picture", "no picture that Pillow knows"),
        ("page.jpg", b"<html><body>404 Not Found</body></html>", "no picture that Pillow knows"),
        ("half.png", whole(format="PNG")[:4000], "truncated"),
        ("half.jpg", whole(format="JPEG")[:2000], "truncated"),
        ("half.gif", whole(format="GIF")[:900], "could not be read as a picture"),
        ("half.webp", whole(format="WEBP")[:900], "could not be read as a picture"),
        ("half.tif", whole(format="TIFF")[:900], "could not be read as a picture"),
        ("head.png", whole(format="PNG")[:30], "could not be read as a picture"),
        ("none.png", png(0, 7), "could not be read as a picture"),
        (
            "none.bmp",
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 0, 0, 1, 24, 0, 0, 0, 0, 0, 0),
            "picture",
        ),
        ("flipped.png", b"".join((d := whole(format="PNG"), d[:60] + bytes([d[60] ^ 255]) + d[61:])[1:]), "could not"),
    ],
)
def test_a_broken_file_is_refused_with_the_reason(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CommandError, match=message) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)
    assert caught.value.status == 1


def test_what_is_no_file(tmp_path):
    with pytest.raises(CommandError, match="there is no picture file"):
        read(tmp_path / "missing.png")
    with pytest.raises(CommandError, match="is a folder, not a picture"):
        read(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = saved(tmp_path / "secret.png", PICTURE)

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refused)
    with pytest.raises(CommandError, match=r"secret\.png could not be read as a picture: permission denied\."):
        read(path)
