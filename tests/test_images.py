from __future__ import annotations

import errno
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from dataengine.errors import ImageError, UsageError
from dataengine.images import RgbArray, list_images, read_photo, shrunk
from tests.scenes import BLUE, GREEN, RED, WHITE, Drawing, photograph

EXIF_ORIENTATION = 0x0112


def quarters(width: int = 48, height: int = 32) -> RgbArray:
    """Four flat quarters: red, green; blue, white. No flip or turn of it is the same picture."""
    w, h = width // 2, height // 2
    drawing = Drawing.ground(width, height, WHITE)
    return drawing.box("a", RED, 0, 0, w, h).box("b", GREEN, w, 0, width, h).box("c", BLUE, 0, h, w, height).rgb


def png_bytes(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG whose header claims a size, with the chunks given and nothing else."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def saved(path: Path, image: Image.Image | RgbArray, **how: Any) -> Path:
    made = image if isinstance(image, Image.Image) else Image.fromarray(image)
    made.save(path, **how)
    return path


@pytest.mark.parametrize(
    ("suffix", "how", "loss"),
    [
        ("jpg", {"quality": 95}, 6.0),
        ("jpeg", {"quality": 95, "progressive": True}, 6.0),
        ("png", {}, 0.0),
        ("webp", {"lossless": True}, 0.0),
        ("webp", {"quality": 95}, 6.0),
        ("bmp", {}, 0.0),
        ("tif", {}, 0.0),
        ("tiff", {"compression": "tiff_lzw"}, 0.0),
    ],
)
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_every_format_in_any_letter_case(
    tmp_path: Path, suffix: str, how: dict[str, Any], loss: float, case: Any
) -> None:
    rgb = photograph("astronaut", 64)
    path = saved(tmp_path / f"photo.{suffix}", rgb, **how).rename(tmp_path / f"photo.{case(suffix)}")
    photo = read_photo(path)
    assert photo.rgb.dtype == np.uint8
    assert photo.rgb.shape == rgb.shape
    assert np.abs(photo.rgb.astype(int) - rgb).mean() <= loss
    assert list_images(str(tmp_path)) == [path]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_gives_the_same_upright_picture(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = Image.fromarray(quarters())
    # What a camera stores so that its tag turns it back: the inverse of each turn.
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    photo = read_photo(saved(tmp_path / f"photo.{suffix}", stored, exif=exif))
    assert (photo.width, photo.height) == (48, 32)
    assert np.abs(photo.rgb.astype(int) - quarters()).mean() < 6


def test_broken_exif_is_no_reason_to_refuse_good_pixels(tmp_path: Path) -> None:
    path = saved(tmp_path / "photo.jpg", quarters(), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff broken")
    assert read_photo(path).rgb.shape == (32, 48, 3)


RAMP = np.linspace(0, 65535, 48 * 32).reshape(32, 48)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("grey.png", RAMP.astype(np.uint16), RAMP / 257),
        ("grey.tif", RAMP.astype(np.uint16), RAMP / 257),
        ("ten_bits.png", (RAMP // 64).astype(np.uint16), RAMP // 64 * 255 / 1023),
        ("twelve_bits.tif", (RAMP // 16).astype(np.uint16), RAMP // 16 * 255 / 4095),
        ("whole.tif", RAMP.astype(np.int32), RAMP / 257),
        ("float.tif", (RAMP / 65535).astype(np.float32), RAMP / 257),
        ("signed.tif", (RAMP - 40000).astype(np.float32), RAMP / 257),
        ("flat.tif", np.full((32, 48), 0.5, np.float32), np.zeros((32, 48))),
        ("holes.tif", np.where(RAMP < 9, np.nan, RAMP / 65535).astype(np.float32), RAMP / 257),
    ],
)
def test_deep_grey_is_scaled_and_not_clipped(tmp_path: Path, name: str, values: Any, expected: Any) -> None:
    photo = read_photo(saved(tmp_path / name, values))
    assert photo.rgb.shape == (32, 48, 3)
    assert np.ptp(photo.rgb, axis=2).max() == 0
    assert np.abs(photo.rgb[..., 0] - expected).max() <= 1.01


def test_deep_colour_is_scaled(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    cv2.imwrite(str(path), quarters()[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_photo(path).rgb, quarters())


def transparent(mode: str, image: Image.Image) -> Image.Image:
    """The picture with its left half fully transparent."""
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, image.width // 2, image.height))
    image = image.convert("RGBA")
    image.putalpha(alpha)
    return image.convert(mode)


def with_clear_index(image: Image.Image) -> Image.Image:
    """A palette picture in which the colour of the top left pixel is transparent."""
    palette = image.convert("RGB").quantize(8)
    palette.info["transparency"] = palette.getpixel((0, 0))
    return palette


QUARTERS = Image.fromarray(quarters())
LUMA = np.array(QUARTERS.convert("L").convert("RGB"))
LEFT_WHITE = quarters().copy()
LEFT_WHITE[:, :24] = 255
LUMA_LEFT_WHITE = LUMA.copy()
LUMA_LEFT_WHITE[:, :24] = 255
RED_WHITE = quarters().copy()
RED_WHITE[:16, :24] = 255


@pytest.mark.parametrize(
    ("name", "image", "expected", "loss"),
    [
        ("cmyk.tif", QUARTERS.convert("CMYK"), quarters(), 0),
        ("cmyk.jpg", QUARTERS.convert("CMYK"), quarters(), 6),
        ("ycbcr.jpg", QUARTERS.convert("YCbCr"), quarters(), 6),
        ("lab.tif", Image.new("LAB", (48, 32), (0, 128, 128)), np.zeros((32, 48, 3)), 3),
        ("palette.png", QUARTERS.quantize(8), quarters(), 1),
        ("palette_clear.png", with_clear_index(QUARTERS), RED_WHITE, 1),
        ("rgba.png", transparent("RGBA", QUARTERS), LEFT_WHITE, 0),
        ("rgba.webp", transparent("RGBA", QUARTERS), LEFT_WHITE, 3),
        ("la.png", transparent("LA", QUARTERS), LUMA_LEFT_WHITE, 1),
        ("grey.png", QUARTERS.convert("L"), LUMA, 0),
        ("bits.png", Image.fromarray(quarters()[..., 2] > 100), np.repeat(quarters()[..., 2:] > 100, 3, 2) * 255, 0),
        ("bits.tif", Image.fromarray(quarters()[..., 2] > 100), np.repeat(quarters()[..., 2:] > 100, 3, 2) * 255, 0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_colour_mode_becomes_rgb(tmp_path: Path, name: str, image: Image.Image, expected: Any, loss: int) -> None:
    photo = read_photo(saved(tmp_path / name, image))
    assert photo.rgb.shape == (32, 48, 3)
    assert np.abs(photo.rgb.astype(int) - expected).mean() <= loss


def test_half_transparency_is_laid_on_white(tmp_path: Path) -> None:
    path = saved(tmp_path / "half.png", Image.new("RGBA", (20, 20), (0, 0, 0, 128)))
    assert read_photo(path).rgb[0, 0].tolist() == [127, 127, 127]


@pytest.mark.parametrize("name", ["moving.webp", "moving.png", "pages.tif"])
def test_of_several_frames_the_first(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (32, 24), colour) for colour in (RED, BLUE, GREEN)]
    how: dict[str, Any] = {"lossless": True} if name.endswith("webp") else {}
    path = saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], **how)
    assert read_photo(path).rgb.reshape(-1, 3).tolist() == [list(RED)] * (32 * 24)


def truncated(path: Path, image: RgbArray, keep: float, **how: Any) -> Path:
    content = saved(path, image, **how).read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


BOMB = png_bytes(20000, 20000, (b"IDAT", zlib.compress(b"\0")))
HALF_BOMB = png_bytes(14000, 14000, (b"IDAT", zlib.compress(b"\0")))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.png", None, "missing"),
        ("empty.jpg", b"", "empty_file"),
        ("text.jpg", b"hello, I am no picture\n", "not_an_image"),
        ("page.png", b"<!doctype html><title>404</title>", "not_an_image"),
        ("zeros.jpg", bytes(4096), "not_an_image"),
        ("magic.png", b"\x89PNG\r\n\x1a\n", "not_an_image"),
        ("no_pixels.png", png_bytes(0, 0, (b"IDAT", zlib.compress(b""))), "not_an_image"),
        ("no_width.png", png_bytes(0, 30, (b"IDAT", zlib.compress(b""))), "not_an_image"),
        ("no_data.png", png_bytes(64, 64), "truncated"),
        ("wrong_data.png", png_bytes(64, 64, (b"IDAT", b"not zlib")), "truncated"),
        ("one.png", png_bytes(1, 1, (b"IDAT", zlib.compress(b"\0" * 4))), "too_small"),
        ("low.png", png_bytes(640, 15), "too_small"),
        ("strip.png", png_bytes(20000, 20), "too_thin"),
        ("post.png", png_bytes(20, 961), "too_thin"),
        ("bomb.png", BOMB, "too_many_pixels"),
        ("half_bomb.png", HALF_BOMB, "too_many_pixels"),
        ("two\nlines\x1b[31m.jpg", b"", "empty_file"),
        ("a" * 300 + ".jpg", None, "unreadable"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_an_unusable_file_is_one_line_with_a_reason(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        read_photo(path)
    assert caught.value.reason == reason
    assert caught.value.hint
    assert str(path) in caught.value.message
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff"])
def test_a_file_cut_off_is_truncated(tmp_path: Path, suffix: str, keep: float) -> None:
    path = truncated(tmp_path / f"cut.{suffix}", photograph("astronaut", 128), keep)
    with pytest.raises(ImageError) as caught:
        read_photo(path)
    assert caught.value.reason == "truncated"
    assert str(path) in str(caught.value)


def test_a_folder_is_no_photo(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="Is a directory"):
        read_photo(tmp_path)


@pytest.mark.parametrize(("width", "height"), [(16, 16), (768, 16), (16, 768)])
def test_the_least_sizes_are_read(tmp_path: Path, width: int, height: int) -> None:
    path = saved(tmp_path / "small.png", np.zeros((height, width, 3), np.uint8))
    assert read_photo(path).rgb.shape == (height, width, 3)


@pytest.mark.parametrize(
    ("width", "height", "side", "expected"),
    [
        (100, 50, 100, (100, 50)),
        (100, 50, 99, (99, 50)),
        (1600, 800, 768, (768, 384)),
        (800, 1600, 768, (384, 768)),
        (1000, 3, 100, (100, 1)),
    ],
)
def test_shrunk(width: int, height: int, side: int, expected: tuple[int, int]) -> None:
    rgb = np.zeros((height, width, 3), np.uint8)
    small = shrunk(rgb, side)
    assert (small.shape[1], small.shape[0]) == expected
    assert (small is rgb) is (expected == (width, height))


def test_view_and_digest_follow_the_size_used(tmp_path: Path) -> None:
    path = saved(tmp_path / "large.png", np.tile(photograph("astronaut", 512), (2, 3, 1)))
    whole, reduced = read_photo(path), read_photo(path, max_side=512)
    assert (whole.width, whole.height) == (1536, 1024)
    assert whole.view.shape == (512, 768, 3)
    assert (reduced.width, reduced.height) == (512, 341)
    assert reduced.view is reduced.rgb
    assert whole.sha256 == reduced.sha256
    assert whole.digest != reduced.digest
    assert read_photo(path).digest == whole.digest


@pytest.mark.parametrize(("size", "side"), [((1536, 1024), 768), ((700, 1021), 333), ((300, 200), 768), ((97, 64), 97)])
def test_the_views_digest_tells_its_long_side(tmp_path: Path, size: tuple[int, int], side: int) -> None:
    photo = read_photo(saved(tmp_path / "photo.png", Image.new("RGB", size)), view_side=side)
    assert photo.view_digest == f"{photo.digest}@{max(photo.view.shape[:2])}"


def test_the_view_is_there_once_a_photo_is_read(tmp_path: Path) -> None:
    assert "view" in vars(read_photo(saved(tmp_path / "photo.png", quarters())))


ODD_NAMES = ["a b.png", 'quote\'s "x".jpg', "日本 é😀.webp", "two\nlines.bmp", "-dash.tif", "#hash.tiff", "a[1].JPEG"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of photos with all that should not be taken for one beside them."""
    photos = tmp_path / "photos"
    named = ["b.png", "a.JPG", "sub/c.png", "sub/deep/d.webp", "sub/.e.png", ".hidden/f.png", "._a.jpg", "notes.txt"]
    named += [
        "out_region_refine_a_1/original_image.png",
        "sub/out_region_refine_b/x.png",
        "out/y.png",
        "folder.png/z.png",
        "export/export_manifest.json",
        "export/images/q.png",
    ]
    for name in (*named, *ODD_NAMES):
        path = photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return photos


def relative(found: list[Path], folder: Path) -> list[str]:
    assert all(path.is_absolute() for path in found)
    return [path.relative_to(folder).as_posix() for path in found]


def test_a_folder(folder: Path) -> None:
    assert relative(list_images(str(folder)), folder) == sorted(["b.png", "a.JPG", *ODD_NAMES])


def test_a_folder_with_its_sub_folders(folder: Path) -> None:
    found = relative(list_images(str(folder), recursive=True), folder)
    deeper = ["folder.png/z.png", "out/y.png", "sub/c.png", "sub/deep/d.webp"]
    assert sorted(found) == sorted(["b.png", "a.JPG", *ODD_NAMES, *deeper])


def test_a_sub_folder_that_cannot_be_read_is_listed_to_fail(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(path: Path) -> Any:
        if Path(path).name == "deep":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path)

    real = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    found = relative(list_images(str(folder), recursive=True), folder)
    assert "sub/deep" in found and "sub/c.png" in found


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["a b.png", "b.png"]),
        ("?.*", ["a.JPG", "b.png"]),
        ("sub/**/*", ["sub/c.png", "sub/deep/d.webp"]),
        ("a[[]1].JPEG", ["a[1].JPEG"]),
        ("a[1].JPEG", ["a[1].JPEG"]),
        ("{}", None),
        ("*.gif", None),
        ("*.txt", None),
    ],
)
def test_a_glob(folder: Path, pattern: str, expected: list[str] | None) -> None:
    if expected is None:
        with pytest.raises(UsageError, match="no such file or folder"):
            list_images(str(folder / pattern))
    else:
        assert relative(list_images(str(folder / pattern)), folder) == expected


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_file_by_its_odd_name(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert relative(list_images(str(folder / name)), folder) == [name]
    monkeypatch.chdir(folder)
    assert relative(list_images(name), folder) == [name]


def test_a_photo_named_without_a_known_suffix_is_taken_at_its_word(tmp_path: Path) -> None:
    saved(tmp_path / "photo", quarters(), format="PNG")
    assert [read_photo(path).width for path in list_images(str(tmp_path / "photo"))] == [48]


def test_a_list_of_paths(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    working = tmp_path / "working"
    working.mkdir()
    (working / "here.png").write_bytes(b"x")
    lines = ["\ufeffb.png", "# a comment", "", "  a b.png  ", str(folder / "a.JPG"), "gone.png", "here.png", "b.png"]
    listing = folder / "photos.TXT"
    listing.write_text("\r\n".join([*lines, "x" * 5000]), encoding="utf-8")
    monkeypatch.chdir(working)
    expected = [folder / "b.png", folder / "a b.png", folder / "a.JPG", folder / "gone.png", working / "here.png"]
    assert list_images(str(listing)) == [*expected, folder / ("x" * 5000)]
    assert list_images(str(listing.rename(folder / "photos"))) == [*expected, folder / ("x" * 5000)]


def test_a_file_that_is_no_text_is_taken_for_an_image(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"\xff\xd8\xff")
    assert list_images(str(tmp_path / "photo")) == [tmp_path / "photo"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "no path in this list"), (b"\n# only a comment\n", "no path in this list")],
)
def test_a_list_of_nothing(tmp_path: Path, content: bytes, words: str) -> None:
    listing = tmp_path / "list.txt"
    listing.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        list_images(str(listing))


@pytest.mark.parametrize(
    ("names", "recursive", "words"),
    [
        ([], False, "no image in this folder (sub-folders are read with --recursive). Looked for bmp jpeg jpg png"),
        (["sub/a.png"], False, "sub-folders are read with --recursive"),
        (["sub/a.txt", ".a.png"], True, "no image in this folder. Looked for"),
    ],
)
def test_a_folder_without_images(tmp_path: Path, names: list[str], recursive: bool, words: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError) as caught:
        list_images(str(tmp_path), recursive=recursive)
    assert words in str(caught.value)


@pytest.mark.parametrize("source", ["gone", "gone.png", "gone/*.png", "a" * 300, "two\nlines"])
def test_nothing_there(tmp_path: Path, source: str) -> None:
    with pytest.raises(UsageError) as caught:
        list_images(str(tmp_path / source))
    assert "--input" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_link_keeps_its_own_name_and_each_file_comes_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "link.png").symlink_to(folder / "b.png")
    (folder / "loop").symlink_to(folder)
    assert "link.png" in relative(list_images(str(folder)), folder)
    assert len(list_images(str(folder), recursive=True)) == len(set(list_images(str(folder), recursive=True)))
    (folder / "twice.txt").write_text(f"b.png\n./b.png\n{os.fspath(folder)}/sub/../b.png\n")
    monkeypatch.chdir(folder)
    assert relative(list_images("twice.txt"), folder) == ["b.png"]
