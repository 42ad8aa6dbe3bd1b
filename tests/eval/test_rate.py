"""Quality by bytes: what is measured against what is written to disk here, the tables, the charts."""

import math
from functools import partial

import numpy as np
import PIL.Image
import pytest

from atoken.errors import AtokenError, MediaError
from atoken.io import Image, Video
from atoken.metrics.pixels import psnr_of, squared_error, ssim
from eval.contract import Item, Output
from eval.models.codecs import FORMATS, AtMost, ImageCodec
from eval.prepare import Preparation
from eval.protocol import FORMAT
from eval.rate import CODECS, Bench, media_of, rate
from eval.report.page import report
from eval.run import write_json
from eval.sources.entry import Entry, Prepared
from tests.eval.media import synthetic_image, synthetic_video
from tests.report.pages import Page
from tests.tokenizer.small import small_tokenizer
from tests.tolerances import FP32

pytest.importorskip("matplotlib", reason="the extra eval is not installed")


def listed(*items):
    """A source of items in hand; None cannot be read."""
    return Prepared(
        [
            Entry(f"broken-{number}" if item is None else item.key, partial(given, item))
            for number, item in enumerate(items)
        ],
        Preparation(),
    )


def given(item):
    if item is None:
        raise MediaError("It is damaged.")
    return item.media


class Same:
    """Gives all back, and does not say for how many bytes."""

    name, record = "same", {"model": "none"}

    def reconstruct(self, items):
        return [Output(item, item.media.pixels[None], item.media.pixels[None]) for item in items]


@pytest.fixture
def small_pca(monkeypatch):
    """Fitted on little, which is all that is small here."""
    monkeypatch.setattr("eval.models.pca.IMAGES", 2)
    monkeypatch.setattr("eval.models.pca.VIDEOS", 2)
    monkeypatch.setattr("eval.models.pca.SIDE", 128)


def of(rows, task):
    return [row for row in rows if row["task"] == task]


def number(row, name):
    return row["numbers"][name]["value"]


def test_a_point_is_the_mean_of_its_files(tmp_path):
    items = [synthetic_image(48, 64), synthetic_image(17, 33, 1), synthetic_image(64, 64, 2)]
    row, sizes = Bench("image", listed(*items)).one(lambda: ImageCodec("jpeg", 40))
    errors, likeness, total = [], [], 0
    for item in items:
        path = tmp_path / f"{item.key}.jpg"
        PIL.Image.fromarray(item.media.pixels).save(path, quality=40, **FORMATS["jpeg"].options)
        pixels = np.array(PIL.Image.open(path))
        errors.append(squared_error(pixels, item.media.pixels))
        likeness.append(ssim(pixels, item.media.pixels))
        total += path.stat().st_size
        assert sizes[item.key] == path.stat().st_size
    assert (row["status"], row["items"]) == ("complete", {"planned": 3, "measured": 3, "full": 3})
    assert number(row, "bytes") == pytest.approx(total / 3)
    assert number(row, "bits per pixel") == pytest.approx(8 * total / (48 * 64 + 17 * 33 + 64 * 64))
    assert number(row, "psnr") == pytest.approx(np.mean([psnr_of(error) for error in errors]))
    assert number(row, "psnr of mean error") == pytest.approx(psnr_of(np.mean(errors)))
    assert number(row, "ssim") == pytest.approx(np.mean(likeness), abs=FP32)


def test_what_cannot_be_read_is_left_out_and_what_cannot_be_measured_says_why():
    bench = Bench("image", listed(synthetic_image(), None, synthetic_image(number=1)))
    row, sizes = bench.one(lambda: ImageCodec("jpeg", 40))
    assert (row["status"], row["items"]["measured"], len(sizes)) == ("partial", 2, 2)
    assert row["failed"] == [{"key": "broken-1", "why": "It is damaged."}]
    row, sizes = bench.one(lambda: ImageCodec("jpeg", 0), name="JPEG")
    assert (row["model"], row["status"], row["numbers"], sizes) == ("JPEG", "failed", {}, {})
    assert row["why"].startswith("The quality of JPEG is from 1 to 100")
    assert "does not tell how many bytes" in bench.one(Same)[0]["why"]
    small = bench.one(lambda: ImageCodec("jpeg", AtMost(10)))[0]  # an item that only this model cannot do
    assert "over the 10 asked for" in small["why"]
    assert bench.one(lambda: ImageCodec("jpeg", 5)) == bench.one(lambda: ImageCodec("jpeg", 5))
    assert Bench("image", listed(None)).one(lambda: ImageCodec("jpeg", 5))[0]["why"] == "No image could be read."


def test_images_of_a_folder_are_curves_and_rows_at_the_same_bytes(tmp_path, small_pca):
    for index, item in enumerate([synthetic_image(48, 64), synthetic_image(49, 33, 1)]):
        item.media.save(tmp_path / f"{index}.png")
    tokenizers = [small_tokenizer(), small_tokenizer("discrete")]
    rows = rate(tmp_path, models=tokenizers, peers=[ImageCodec("jpeg", 33)])
    for format in FORMATS.values():
        curve = [row for row in of(rows, "image-rate") if row["model"].startswith(format.name)]
        sizes = [number(row, "bits per pixel") for row in curve if row["model"] != "JPEG, quality 33"]
        assert len(sizes) == len(CODECS["image"][2])
        assert sizes == sorted(sizes)
    names = ["small-continuous", "small-continuous, float16", "small-discrete"]
    assert [row["model"] for row in of(rows, "image-rate")[-6:]] == [
        *names,
        "PCA, 48 numbers a patch",
        "PCA, 48 numbers a patch, float16",
        "JPEG, quality 33",
    ]
    for name in names:
        own, *codecs, pca = of(rows, f"image-rate, at the bytes of {name}")
        assert own["model"] == name
        assert len(codecs) == len(FORMATS)
        assert all(row["why"] or number(row, "bytes") <= number(own, "bytes") for row in codecs)
        assert pca["model"].startswith("PCA, 48 numbers a patch")
        assert number(pca, "bytes") == (12 + 4 * 3) / 2 * 48 * (2 if "float16" in name else 4)
    assert rows[0]["identity"]["codec"] == "JPEG, 4:2:0"
    measured = [row for row in rows if not row["why"]]
    assert {row["protocol"]["task"] for row in measured} == {"image-rate"}
    for name in ("psnr", "ssim", "bytes"):
        assert len({row["numbers"][name]["fingerprint"] for row in measured}) == 1


def test_videos_beside_codecs_of_videos(small_pca):
    source = listed(synthetic_video(9, 32, 48), synthetic_video(5, 17, 20))
    rows = rate({"video": source}, models=[small_tokenizer("discrete")])
    for name in ("H.264", "H.265"):
        curve = [row for row in of(rows, "video-rate") if row["model"].startswith(name)]
        assert len(curve) == len(CODECS["video"][2])
        if not curve[0]["why"]:
            sizes = [number(row, "bytes") for row in curve]
            assert sizes == sorted(sizes)
            assert number(curve[0], "bits per pixel") == pytest.approx(16 * sizes[0] / (9 * 32 * 48 + 5 * 17 * 20))
    *_, pca = of(rows, "video-rate, at the bytes of small-discrete")
    assert pca["identity"]["model"] == "48 principal components of patches of 4 x 16 x 16 pixels"
    assert number(pca, "bytes") == (3 * 2 * 3 + 2 * 2 * 2) / 2 * 48 * 4


def test_media_are_what_a_folder_holds(tmp_path):
    synthetic_image().media.save(tmp_path / "a.png")
    Video(synthetic_video(2, 32, 32).media.frames).save(tmp_path / "b.mp4")
    found = media_of(tmp_path)
    assert {modality: [of.key(n) for n in range(len(of))] for modality, of in found.items()} == {
        "image": ["a.png"],
        "video": ["b.mp4"],
    }
    (tmp_path / "empty").mkdir()
    with pytest.raises(AtokenError):
        media_of(tmp_path / "empty")


def test_a_perfect_item_leaves_the_mean_psnr_out_and_the_chart_of_the_mean_error_has_every_point(tmp_path):
    grey = Item("grey", Image(np.full((32, 32, 3), 128, np.uint8)))
    bench = Bench("image", listed(grey, synthetic_image()))
    rows = [bench.one(lambda q=q: ImageCodec("jpeg", q))[0] for q in (20, 90)]
    rows.append(bench.one(lambda: ImageCodec("avif", -1), name="AVIF")[0])
    assert rows[1]["skipped"] == {"psnr": "It is inf."}
    assert rows[1]["status"] == "complete"
    assert math.isfinite(number(rows[1], "psnr of mean error"))
    write_json(tmp_path / "result.json", {"format": FORMAT, "rows": rows, "run": {}})
    page = Page(report([tmp_path / "result.json"], tmp_path / "report.html"))
    assert "psnr of mean error by bits per pixel" in page.charts_under("Charts")
    (problems,) = page.tables["Problems"]
    assert ["JPEG, quality 90", "psnr: left out", "It is inf."] in problems
    assert problems[-1][:2] == ["AVIF", "failed"]
