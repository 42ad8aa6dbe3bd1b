"""Quality by bytes: what is measured against what is written to disk here, the tables, the charts."""

import json
import math
from functools import partial

import numpy as np
import PIL.Image
import pytest

from atoken.errors import AtokenError, MediaError
from atoken.io import Image, Video
from atoken.metrics.pixels import psnr_of, squared_error, ssim
from eval.contract import Item, Output
from eval.models.codecs import FORMATS, ImageCodec
from eval.models.matching import AtMost
from eval.models.pca import PCA
from eval.prepare import Preparation
from eval.rate import CRFS, QUALITIES, Bench, media_of, rate
from eval.rate_report import Point, drawn, tables, write
from eval.sources.entry import Entry, Prepared
from tests.eval.media import made_image, made_video
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


def of(points, **wanted):
    return [point for point in points if all(getattr(point, name) == value for name, value in wanted.items())]


def test_a_point_is_the_mean_of_its_files(tmp_path):
    items = [made_image(48, 64), made_image(17, 33, 1), made_image(64, 64, 2)]
    point, sizes = Bench("image", listed(*items)).one(lambda: ImageCodec("jpeg", 40))
    errors, likeness, total = [], [], 0
    for item in items:
        path = tmp_path / f"{item.key}.jpg"
        PIL.Image.fromarray(item.media.pixels).save(path, quality=40, **FORMATS["jpeg"].options)
        ours = np.array(PIL.Image.open(path))
        errors.append(squared_error(ours, item.media.pixels))
        likeness.append(ssim(ours, item.media.pixels))
        total += path.stat().st_size
        assert sizes[item.key] == path.stat().st_size
    assert (point.items, point.size) == (3, pytest.approx(total / 3))
    assert point.bits_per_pixel == pytest.approx(8 * total / (48 * 64 + 17 * 33 + 64 * 64))
    assert point.psnr == pytest.approx(np.mean([psnr_of(error) for error in errors]))
    assert point.psnr_of_mean == pytest.approx(psnr_of(np.mean(errors)))
    assert point.ssim == pytest.approx(np.mean(likeness), abs=FP32)


def test_what_cannot_be_read_is_left_out_and_what_cannot_be_measured_says_why():
    bench = Bench("image", listed(made_image(), None, made_image(number=1)))
    point, _ = bench.one(lambda: ImageCodec("jpeg", 40))
    assert (point.items, bench.failed) == (2, {"broken-1": "It is damaged."})
    point, sizes = bench.one(lambda: ImageCodec("jpeg", 0), name="JPEG")
    assert (point.model, point.items, sizes) == ("JPEG", 0, {})
    assert point.why.startswith("The quality of JPEG is from 1 to 100")
    assert "does not tell how many bytes" in bench.one(Same)[0].why
    small = bench.one(lambda: ImageCodec("jpeg", AtMost(10)))[0]  # an item that only this model cannot do
    assert "over the 10 asked for" in small.why
    assert len(bench.failed) == 1
    assert bench.one(lambda: ImageCodec("jpeg", 5)) == bench.one(lambda: ImageCodec("jpeg", 5))
    assert Bench("image", listed(None)).one(lambda: ImageCodec("jpeg", 5))[0].why == "No image could be read."


def test_images_from_a_folder_to_tables_and_charts(tmp_path, small_pca):
    for number, item in enumerate([made_image(48, 64), made_image(49, 33, 1)]):
        item.media.save(tmp_path / f"{number}.png")
    tokenizers = [small_tokenizer(), small_tokenizer("discrete")]
    points = rate(tmp_path, tmp_path / "out", models=tokenizers, peers=[ImageCodec("jpeg", 33)])
    for format in FORMATS.values():
        curve = [point for point in of(points, group="curve") if point.model.startswith(format.name)]
        sizes = [point.bits_per_pixel for point in curve if point.model != "JPEG, quality 33"]
        assert len(sizes) == len(QUALITIES)
        assert sizes == sorted(sizes)
    names = ["small-continuous", "small-continuous, float16", "small-discrete"]
    assert [point.model for point in of(points, group="curve")[-6:]] == [
        *names,
        "PCA, 48 numbers a patch",
        "PCA, 48 numbers a patch, float16",
        "JPEG, quality 33",
    ]
    for name in names:
        own, *codecs, pca = of(points, group=f"at the bytes of {name}")
        assert own.model == name
        assert len(codecs) == len(FORMATS)
        assert all(codec.why or codec.size <= own.size for codec in codecs)
        assert pca.model.startswith("PCA, 48 numbers a patch")
        assert pca.size == (12 + 4 * 3) / 2 * 48 * (2 if "float16" in name else 4)
    record = json.loads((tmp_path / "out" / "rate.json").read_text())
    assert [point["model"] for point in record["points"]] == [point.model for point in points]
    assert record["points"][0]["record"]["codec"] == "JPEG, 4:2:0"
    measured = [point for point in record["points"] if not point["why"]]
    assert {point["protocol"]["task"] for point in measured} == {"image-rate"}
    for metric in ("psnr", "ssim", "size"):
        assert len({point["fingerprints"][metric] for point in measured}) == 1
    assert "| small-discrete | 2 |" in (tmp_path / "out" / "rate.md").read_text()
    page = Page(tmp_path / "out" / "rate.html")
    assert page.charts_under("image") == ["PSNR, dB", "SSIM"]
    assert {"JPEG", "WebP", "small-continuous"} <= set(page.charts[0][2])


def test_videos_beside_codecs_of_videos(tmp_path, small_pca):
    source = listed(made_video(9, 32, 48), made_video(5, 17, 20))
    points = rate({"video": source}, tmp_path, models=[small_tokenizer("discrete")])
    for name in ("H.264", "H.265"):
        curve = [point for point in of(points, group="curve") if point.model.startswith(name)]
        assert len(curve) == len(CRFS)
        if not curve[0].why:
            sizes = [point.size for point in curve]
            assert sizes == sorted(sizes)
            assert curve[0].bits_per_pixel == pytest.approx(16 * sizes[0] / (9 * 32 * 48 + 5 * 17 * 20))
    *_, pca = of(points, group="at the bytes of small-discrete")
    assert pca.record["model"] == "48 principal components of patches of 4 x 16 x 16 pixels"
    assert pca.size == (3 * 2 * 3 + 2 * 2 * 2) / 2 * 48 * 4
    assert (tmp_path / "rate.html").exists()


def test_media_are_what_a_folder_holds(tmp_path):
    made_image().media.save(tmp_path / "a.png")
    Video(made_video(2, 32, 32).media.frames).save(tmp_path / "b.mp4")
    found = media_of(tmp_path)
    assert {modality: [of.key(n) for n in range(len(of))] for modality, of in found.items()} == {
        "image": ["a.png"],
        "video": ["b.mp4"],
    }
    (tmp_path / "empty").mkdir()
    with pytest.raises(AtokenError):
        media_of(tmp_path / "empty")


def test_a_perfect_item_is_inf_as_text_and_the_chart_takes_the_other_convention(tmp_path):
    grey = Item("grey", Image(np.full((32, 32, 3), 128, np.uint8)))
    pca = PCA(
        [np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)], "noise", components=4, block=(1, 2, 2)
    )
    bench = Bench("image", listed(grey, made_image()))
    points = [bench.one(lambda q=q: ImageCodec("jpeg", q))[0] for q in (50, 90)] + [bench.one(lambda: pca)[0]]
    assert points[1].psnr == math.inf
    assert math.isfinite(points[1].psnr_of_mean)
    write([*points, Point("image", "curve", "AVIF", why="It | is not there.")], {"x": "It is damaged."}, tmp_path)
    record = json.loads((tmp_path / "rate.json").read_text())
    assert record["points"][1]["psnr"] == "inf"
    assert record["failed"] == {"x": "It is damaged."}
    text = (tmp_path / "rate.md").read_text()
    assert r"| AVIF | It \| is not there. |" in text
    assert "| x | It is damaged. |" in text
    (charts,) = drawn(points)
    assert [figure.title for figure in charts.figures] == ["PSNR of mean error, dB", "SSIM"]
    assert [row[0] for table in tables(points) for row in table.rows] == [point.model for point in points]
