"""What is read of a picture file, by value, for every kind of file that people have; and what upscale keeps of it."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from typer.testing import CliRunner

from offprint.data.images import ImageFolder
from offprint.data.pictures import Pictures
from offprint.data.reading import PictureWarning, open_picture, read_picture
from offprint.data.writing import encode, format_of
from offprint.errors import DataError
from offprint.tasks.enlarging import enlarge_files, enlarge_picture, planned
from offprint.tasks.restoration import to_tensor

RNG = np.random.default_rng(0)
SCENE = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


class Doubled(torch.nn.Module):
    """A model that repeats every pixel."""

    scale = 2

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def saved(tmp_path, image, name="p.png", **kwargs):
    image.save(tmp_path / name, **kwargs)
    return tmp_path / name


def profile_swapping_red_and_green():
    """sRGB's own profile with the red and green columns exchanged: what it calls red is green."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132])
    for at in range(132, 132 + 12 * count, 12):
        tag = bytes(data[at : at + 4])
        data[at : at + 4] = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}.get(tag, tag)
    return (
        bytes(data)
        .replace("sRGB built-in".encode("utf-16-be"), "swap built-in".encode("utf-16-be"))
        .replace(b"sRGB built-in", b"swap built-in")
    )


TURNS = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
         5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
         8: lambda a: np.rot90(a)}  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(tmp_path, Image.fromarray(SCENE), exif=exif)
    expected = TURNS[orientation](SCENE)
    assert np.array_equal(np.asarray(read_picture(file)), expected)
    assert np.array_equal((open_picture(file).colour * 255).round(), expected)
    assert np.array_equal(np.asarray(read_picture(file, as_stored=True)), SCENE)
    deep, _ = encode(open_picture(saved(tmp_path, Image.fromarray(SCENE), "flat.png")).but(depth=16, exif=exif))
    (tmp_path / "deep.png").write_bytes(deep)
    found = open_picture(tmp_path / "deep.png")
    assert found.depth == 16 and np.array_equal((found.colour * 255).round(), expected)


@pytest.mark.parametrize("name", ["p.png", "p.tif"])
def test_sixteen_bit_grey_is_scaled(tmp_path, name):
    grey = (np.arange(20, dtype=np.uint16).reshape(4, 5) * 3000).astype(np.uint16)
    file = saved(tmp_path, Image.fromarray(grey), name)
    expected = np.round(grey / 257).astype(np.uint8)
    assert np.array_equal(np.asarray(read_picture(file)), np.repeat(expected[..., None], 3, 2))
    picture = open_picture(file)
    assert picture.depth == 16 and np.array_equal((picture.colour[..., 0] * 65535).round(), grey)


def test_floating_point(tmp_path):
    file = saved(tmp_path, Image.fromarray(np.full((3, 3), 0.2, np.float32)), "f.tif")
    assert set(np.asarray(read_picture(file)).ravel()) == {51}
    file = saved(tmp_path, Image.fromarray(np.full((3, 3), 7.5, np.float32)), "g.tif")
    with pytest.raises(DataError, match=r"g\.tif: .*7\.5.*no stated white.*0 to 1"):
        read_picture(file)


@pytest.mark.parametrize("name", ["p.png", "p.webp", "p.tif"])
def test_hidden_pixels_do_not_show(tmp_path, name):
    alpha = np.zeros((6, 9), np.uint8)
    alpha[:, 5:] = 255
    image = Image.fromarray(np.dstack([SCENE, alpha]))
    file = saved(tmp_path, image, name, **({"lossless": True, "exact": True} if name.endswith("webp") else {}))
    seen = np.asarray(read_picture(file))
    assert (seen[:, :5] == 255).all() and np.array_equal(seen[:, 5:], SCENE[:, 5:])
    assert tuple(np.asarray(read_picture(file, background=(9, 8, 7)))[0, 0]) == (9, 8, 7)
    assert np.array_equal((to_tensor(image) * 255).round().permute(1, 2, 0).numpy(), seen)
    picture = open_picture(file)
    assert np.array_equal(picture.alpha * 255, alpha) and np.array_equal((picture.colour * 255).round(), SCENE)


def test_half_transparent_grey(tmp_path):
    file = saved(tmp_path, Image.merge("LA", [Image.new("L", (2, 2), 100), Image.new("L", (2, 2), 51)]))
    assert set(np.asarray(read_picture(file)).ravel()) == {round(0.2 * 100 + 0.8 * 255)}


def test_palettes(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode="P")
    image.putpalette([10, 20, 30, 200, 100, 0, 0, 0, 255])
    colours = np.array([[10, 20, 30], [200, 100, 0], [0, 0, 255]])
    plain, clear = saved(tmp_path, image), saved(tmp_path, image, "t.png", transparency=1)
    assert np.array_equal(np.asarray(read_picture(plain)), colours[[[0, 1], [2, 1]]])
    seen = np.asarray(read_picture(clear))
    assert (seen[:, 1] == 255).all() and np.array_equal(seen[:, 0], colours[[0, 2]])
    assert np.array_equal(open_picture(clear).alpha, [[1, 0], [1, 0]])


def test_profile_is_converted_and_kept(tmp_path):
    swap = profile_swapping_red_and_green()
    file = saved(tmp_path, Image.new("RGB", (4, 4), (255, 0, 0)), icc_profile=swap)
    red, green, blue = np.asarray(read_picture(file))[0, 0].astype(int)
    assert green > 250 and red < 8 and blue < 8
    picture = open_picture(file)
    assert picture.icc == swap and picture.colour[0, 0].tolist() == [1, 0, 0]
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(np.asarray(read_picture(saved(tmp_path, Image.fromarray(SCENE), icc_profile=srgb))), SCENE)
    damaged = saved(tmp_path, Image.fromarray(SCENE), "d.png", icc_profile=b"no profile")
    with pytest.warns(PictureWarning, match="d.png: its colour profile cannot be used"):
        assert np.array_equal(np.asarray(read_picture(damaged)), SCENE)


def test_cmyk(tmp_path):
    file = saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "c.jpg", quality=100)
    assert np.abs(np.asarray(read_picture(file)).astype(int) - [255, 0, 0]).max() < 4
    picture = open_picture(file)
    assert picture.colour.shape == (8, 8, 3) and "CMYK" in picture.notes[0]


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_animated_pictures_give_their_first_frame_and_say_so(tmp_path, name):
    frames = [Image.new("RGB", (4, 4), c) for c in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    kwargs = {"lossless": True} if name.endswith("webp") else {}
    file = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **kwargs)
    with pytest.warns(PictureWarning, match=rf"{name}: only the first of its 3 frames"):
        assert tuple(np.asarray(read_picture(file))[0, 0]) == (200, 0, 0)
    assert "3 frames" in open_picture(file).notes[0]


def test_a_plain_picture_raises_no_word(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(np.asarray(read_picture(saved(tmp_path, Image.fromarray(SCENE)))), SCENE)


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "the file is empty"), (b"<html>no picture", "no format that is known"), (b"\0\0\0\x18ftypheic\0\0", "HEIC"),
     (None, "no such file")],
)  # fmt: skip
def test_why_a_picture_cannot_be_read(tmp_path, content, why):
    file = tmp_path / "bad.jpg"
    if content is not None:
        file.write_bytes(content)
    for read in (read_picture, open_picture):
        with pytest.raises(DataError, match=rf"cannot read the picture .*bad\.jpg: .*{why}"):
            read(file)


def test_truncated_and_huge_pictures_are_named(tmp_path, monkeypatch):
    file = saved(tmp_path, Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "cut.jpg")
    file.write_bytes(file.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"cut\.jpg: .*truncated"):
        read_picture(file)
    with pytest.raises(DataError, match=r"it is a folder"):
        read_picture(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"p\.png: .*MAX_IMAGE_PIXELS"):
        read_picture(saved(tmp_path, Image.fromarray(SCENE)))


def test_data_sets_read_through_the_one_reader(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(SCENE).save(tmp_path / name / "p.png", exif=exif)
    for data in (ImageFolder(tmp_path), Pictures(tmp_path)):
        assert np.array_equal(np.asarray(data[0][0]), TURNS[6](SCENE))


def everything(depth):
    """A turned picture with transparency, a profile, a resolution and EXIF data."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x0100] = "maker", 6, 9
    exif.get_ifd(0x8769)[0xA002] = 9
    alpha = np.linspace(0, 1, 54, dtype=np.float32).reshape(6, 9)
    picture = open_picture(Image.fromarray(SCENE)).but(
        alpha=alpha, depth=depth, icc=profile_swapping_red_and_green(), dpi=(300, 300), exif=exif
    )
    picture.colour[:] = RNG.integers(0, 2**depth, picture.colour.shape) / (2**depth - 1)
    return picture


@pytest.mark.parametrize("depth", [8, 16])
def test_upscale_keeps_what_the_file_holds(tmp_path, depth):
    given = everything(depth)
    (tmp_path / "p.png").write_bytes(encode(given)[0])
    [done] = enlarge_files(Doubled(), planned(tmp_path / "p.png", None, 2))
    assert done.file == tmp_path / "p_x2.png" and (done.before, done.after, done.notes) == ((6, 9), (12, 18), [])
    found, levels = open_picture(done.file), 2**depth - 1
    upright = np.rot90(np.dstack([given.colour, given.alpha]), -1)
    visible = upright[..., 3:] > 0
    larger = np.where(visible, upright, 0).repeat(2, 0).repeat(2, 1)
    got = np.dstack([found.colour, found.alpha]) * np.dstack([visible.repeat(2, 0).repeat(2, 1)] * 4)
    assert np.array_equal((got * levels).round(), (larger * levels).round())
    assert found.depth == depth and found.icc == given.icc
    assert found.dpi == pytest.approx((300, 300), abs=0.01)
    assert found.exif[0x010F] == "maker" and found.exif[0x0100] == 12 and found.exif.get_ifd(0x8769) == {0xA002: 12}
    with Image.open(done.file) as image:
        assert 0x0112 not in image.getexif()
        image.verify()


def test_hidden_colours_do_not_bleed_into_the_edge():
    class Blurred(Doubled):
        def forward(self, x):
            return torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear")

    colour = np.zeros((8, 8, 3), np.float32)
    colour[:, :4], colour[:, 4:] = (1, 0, 0), (0, 1, 0)
    alpha = np.ones((8, 8), np.float32)
    alpha[:, 4:] = 0
    picture = open_picture(Image.fromarray(SCENE)).but(colour=colour, alpha=alpha)
    larger = enlarge_picture(Blurred(), picture)
    edge = larger.colour[larger.alpha > 0]
    assert np.allclose(edge, (1, 0, 0)) and 0 < larger.alpha[0, 8] < 1


def test_grey_stays_grey(tmp_path):
    file = saved(tmp_path, Image.fromarray(SCENE[..., 0]))
    [done] = enlarge_files(Doubled(), planned(file, tmp_path / "o.png", 2))
    with Image.open(done.file) as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), SCENE[..., 0].repeat(2, 0).repeat(2, 1))


def test_formats_say_what_they_cannot_keep(tmp_path):
    (tmp_path / "p.png").write_bytes(encode(everything(16))[0])
    [done] = enlarge_files(Doubled(), planned(tmp_path / "p.png", tmp_path / "o.jpg", 2))
    assert [note.split(":")[0] for note in done.notes] == [
        "16 bits per channel became 8", "transparent parts became white"
    ]  # fmt: skip
    with Image.open(done.file) as image:
        assert image.format == "JPEG" and image.mode == "RGB"
    [done] = enlarge_files(Doubled(), planned(tmp_path / "p.png", tmp_path / "o.tif", 2))
    assert open_picture(done.file).alpha is not None and open_picture(done.file).exif[0x010F] == "maker"
    assert len(done.notes) == 1
    with pytest.raises(DataError, match=r"'o\.xyz'; give a name that ends in \.png"):
        format_of("o.xyz")


def test_folders(tmp_path):
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    for name in ("a.png", "a.bmp", "sub/b.png"):
        Image.fromarray(SCENE).save(source / name)
    (source / "sub" / "bad.png").write_bytes(b"")
    failed = []
    pairs = planned(source, None, 2)
    done = list(enlarge_files(Doubled(), pairs, failed=failed.append))
    assert sorted(str(d.file.relative_to(tmp_path / "in_x2")) for d in done) == [
        "a_bmp_x2.png", "a_png_x2.png", "sub/b_x2.png"
    ]  # fmt: skip
    assert len(failed) == 1 and "bad.png: the file is empty" in str(failed[0])
    with pytest.raises(DataError, match=r"bad\.png"):
        list(enlarge_files(Doubled(), pairs))


def test_the_input_is_never_written_over(tmp_path):
    file = saved(tmp_path, Image.fromarray(SCENE))
    before = file.read_bytes()
    (tmp_path / "link.png").hardlink_to(file)
    for target in (file, tmp_path / "." / "p.png", tmp_path / "link.png"):
        with pytest.raises(DataError, match="written over the picture that is read"):
            planned(file, target, 2)
    (tmp_path / "in").mkdir()
    Image.fromarray(SCENE).save(tmp_path / "in" / "q.png")
    with pytest.raises(DataError, match="a folder of its own"):
        planned(tmp_path / "in", tmp_path / "in", 2)
    assert file.read_bytes() == before


def test_the_verb_on_a_folder(tmp_path, monkeypatch):
    import offprint
    from offprint.cli.main import app

    monkeypatch.chdir(tmp_path)
    offprint.save_weights(offprint.create_model("cfsr_x2"), "w.safetensors")
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (40, 36), (200, 30, 30, 128)).save("in/p.png", exif=exif)
    (tmp_path / "in" / "bad.png").write_bytes(b"none")
    result = CliRunner().invoke(app, ["upscale", "in", "--checkpoint", "w.safetensors"])
    assert result.exit_code == 2 and "36x40 to 72x80" in result.output
    assert "1 of 2 pictures could not be read" in result.output
    with Image.open("in_x2/p_x2.png") as image:
        assert image.size == (72, 80) and image.mode == "RGBA"


def test_bytes_are_read_as_files_are():
    buffer = io.BytesIO()
    Image.fromarray(SCENE).save(buffer, "PNG")
    assert np.array_equal(np.asarray(read_picture(buffer.getvalue())), SCENE)
    with pytest.raises(DataError, match="page 3: the file is empty"):
        read_picture(b"", name="page 3")
