"""The same media give the same batches wherever they are kept; a file of data is read as it is meant, or refused."""

import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from atoken.data.loading import crop_image, load_image, load_video
from atoken.data.mixing import Broken
from atoken.data.sources import FolderSource
from atoken.data.synthetic.labelled import FIGURE_PROMPTS, WAYS, class_of
from atoken.data.synthetic.procedural import make_image, make_video
from atoken.data.synthetic.series import MAKERS
from atoken.errors import AtokenError, MediaError
from atoken.io import Video, write_video
from atoken.modalities import MODALITIES
from atoken.modalities.pixels import patchify, to_values
from atoken.photographs import Photo
from atoken.pretrain.batches import batch
from atoken.pretrain.curriculum import CURRICULA, SEMANTICS
from atoken.pretrain.data_file import read_data
from atoken.pretrain.datasets import TaskDataset, generated, load_datasets, shape
from atoken.pretrain.packing import Budget, budgets
from atoken.pretrain.stages import Stage, Task
from atoken.train.recipe import Recipe
from tests.media.video_cases import moving

TASKS = {
    "image": Task("image", (), tokens=64, patches=(4, 16)),
    "captioned": Task("image", SEMANTICS, tokens=64, patches=(16, 16)),
    "video": Task("video", (), tokens=64, patches=(4, 9), length=(1, 2), strides=((1, 2),)),
    "surface": Task("surface", ()),
}
STAGE = Stage("any", "nano", TASKS, {"image": 2, "captioned": 1, "video": 1, "surface": 1}, recipe=Recipe(seed=3))
IMAGES = replace(STAGE, mixture={"image": 1})
VALUES = {"image": 768, "video": 3072}  # of a patch: images have one frame


def images(count: int = 7) -> list[tuple[str, bytes, list[str]]]:
    rng, found = np.random.default_rng(0), []
    for n in range(count):
        file = io.BytesIO()
        size = (*rng.integers(20, 90, 2).tolist(), 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(file, format="PNG")
        found.append((f"{n:02d}", file.getvalue(), [f"number {n}", f"Nummer {n}"]))
    return found


def write_folder(top: Path, samples: list[tuple[str, bytes, list[str]]]) -> str:
    (top / "photos").mkdir()
    for key, media, captions in samples:
        (top / "photos" / f"{key}.png").write_bytes(media)
        (top / "photos" / f"{key}.txt").write_text("\n".join(captions))
    return "folder = 'photos'"


def write_shards(top: Path, samples: list[tuple[str, bytes, list[str]]]) -> str:
    (top / "shards").mkdir()
    for name, some in (("a.tar", samples[:3]), ("b.tar", samples[3:])):
        with tarfile.open(top / "shards" / name, "w") as archive:
            for key, media, captions in some:
                for suffix, data in ((".png", media), (".txt", "\n".join(captions).encode())):
                    member = tarfile.TarInfo(key + suffix)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return "shards = 'shards'"


def write_table(top: Path, samples: list[tuple[str, bytes, list[str]]]) -> str:
    columns = {"image": [media for _, media, _ in samples], "said": [captions for *_, captions in samples]}
    pq.write_table(pa.table(columns), top / "a.parquet", row_group_size=2)
    return "table = 'a.parquet'\nmedia = 'image'\ncaptions = 'said'"


def datasets_of(top: Path, text: str, stage: Stage = IMAGES) -> dict[str, TaskDataset]:
    (top / "data.toml").write_text(text)
    return load_datasets(top / "data.toml", stage)


# Sources


@pytest.mark.parametrize("write", [write_shards, write_table])
def test_the_same_media_give_the_same_batches_wherever_they_are(write: Callable, tmp_path: Path) -> None:
    stage = replace(STAGE, mixture={"image": 1, "captioned": 1})
    datasets = [
        datasets_of(tmp_path, f"[image.mine]\n{kind(tmp_path, images())}\n", stage) for kind in (write_folder, write)
    ]
    captions = set()
    for name in ("image", "captioned"):
        for number in range(3):
            result, expected = (batch(stage, one, name, number) for one in datasets)
            assert torch.equal(result.tokens.feats, expected.tokens.feats)
            assert torch.equal(result.tokens.coords, expected.tokens.coords)
            assert result.captions == expected.captions
            captions |= set(result.captions)
    assert captions <= {caption for *_, both in images() for caption in both}
    assert {caption.split()[0] for caption in captions} == {"number", "Nummer"}


def test_a_dataset_gives_what_loading_its_samples_gives(tmp_path: Path) -> None:
    write_folder(tmp_path, images())
    for n in range(3):
        write_video(Video(moving(20 + n, 48, 64)), tmp_path / "photos" / f"{n}.mp4")
    stage = replace(STAGE, mixture={"image": 1, "video": 1})
    datasets = datasets_of(tmp_path, "[image.x]\nfolder = 'photos'\n[video.x]\nfolder = 'photos'", stage)
    for name, suffix in (("image", ".png"), ("video", ".mp4")):
        source, task = FolderSource(tmp_path / "photos", [suffix]), TASKS[name]
        for budget in budgets(task, 3, name, 1):
            drawn = datasets[name].draw(budget)
            sample = source[datasets[name].mixture.position(budget.index)[1]]
            rng = budget.rng()
            if name == "image":
                frames = load_image(sample, budget.patches, 4)
            else:
                frames = load_video(sample, budget.length, budget.patches, rng, least=4, strides=task.strides)
            assert (drawn.source, drawn.key) == ("x", sample.key)
            assert torch.equal(drawn.value.tokens.feats, patchify(to_values(frames)).feats[:, : VALUES[name]])
            assert drawn.value.caption in sample.captions or drawn.value.caption == ""


def test_tasks_on_one_table_have_orders_of_their_own(tmp_path: Path) -> None:
    stage = replace(STAGE, mixture={"image": 1, "captioned": 1})
    text = f"[image.mine]\n{write_folder(tmp_path, images(30))}\n"
    first, again, seeded = (datasets_of(tmp_path, seed + text, stage) for seed in ("", "seed = 0\n", "seed = 1\n"))
    later = datasets_of(tmp_path, text, replace(stage, recipe=Recipe(seed=4)))

    def order(dataset: TaskDataset) -> list[int]:
        return [dataset.mixture.position(index)[1] for index in range(30)]

    assert order(first["image"]) == order(again["image"])
    orders = [order(first["image"]), order(first["captioned"]), order(seeded["image"]), order(later["image"])]
    assert all(sorted(one) == list(range(30)) for one in orders)
    assert len({tuple(one) for one in orders}) == 4


def test_the_word_procedural_generates_all_tasks_but_crops() -> None:
    datasets = load_datasets("procedural", STAGE)
    assert list(datasets) == ["image", "captioned", "video"]
    budget = Budget(5, 2, 9, (3, 1, 2, 5))
    drawn, (rows, columns) = datasets["video"].draw(budget).value, shape(TASKS["video"], budget)
    sample = make_video(datasets["video"].seed, 5, 8, rows * 16, columns * 16)
    assert torch.equal(drawn.tokens.feats, patchify(to_values(sample.frames)).feats)
    assert drawn.caption == sample.caption
    sample = make_image(8, 5, rows * 16, columns * 16)
    patches = patchify(to_values(sample.frames))
    image = generated(TASKS["image"], budget, 8, "mixed").tokens
    assert torch.equal(image.feats, patches.feats[:, : VALUES["image"]])
    assert torch.equal(image.coords, patches.coords)
    assert len({dataset.seed for dataset in datasets.values()}) == 3


def test_what_is_generated_for_captions_has_labels_that_come_round() -> None:
    dataset = load_datasets("procedural", STAGE)["captioned"]
    budgets_of_all = [Budget(index, 1, 16, (3, index)) for index in range(2 * WAYS)]
    found = [dataset.draw(budget) for budget in budgets_of_all]
    own = [index for index, one in enumerate(found) if one.source == "labelled"]
    assert {one.source for one in found} == {"labelled", "grounded"}
    assert len(own) > len(found) / 2
    assert all(found[index].value.caption.startswith(FIGURE_PROMPTS[class_of(index)]) for index in own)


def test_related_samples_of_a_series_stay_neighbours_among_other_sources(tmp_path: Path) -> None:
    text = "[image.many]\nprocedural = 'mixed'\nweight = 5\n[image.counted]\nprocedural = 'counted'\n"
    dataset = datasets_of(tmp_path, text)["image"]
    found = [dataset.draw(Budget(index, 1, 16, (3, index))) for index in range(6 * 8)]
    said = [one.value.caption.split()[:3] for one in found if one.source == "counted"]
    assert [count for count, *_ in said] == ["one", "two", "three", "four"] * 2
    assert [colour for _, colour, _ in said] == [said[0][1]] * 4 + [said[4][1]] * 4


def test_a_series_that_a_modality_lacks_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"\[video\.x\]: the generator has no scenes for the modality video; it has"):
        datasets_of(tmp_path, "[video.x]\nprocedural = 'scenes'", replace(STAGE, mixture={"video": 1}))


def test_the_generator_is_a_source_among_others(tmp_path: Path) -> None:
    mine, generated_ = write_folder(tmp_path, images()), "procedural = 'mixed'\nweight = 2"
    dataset = datasets_of(tmp_path, f"[image.mine]\n{mine}\n[image.generated]\n{generated_}")["image"]
    found = [dataset.draw(budget) for number in range(3) for budget in budgets(TASKS["image"], 3, "image", number)]
    assert len(found) % 3 == 0
    assert [one.source for one in found].count("generated") == len(found) * 2 // 3
    assert all(one.value.tokens.lengths[0] <= 16 for one in found)


def test_a_task_on_captions_skips_samples_without_and_one_of_several_is_drawn(tmp_path: Path) -> None:
    stage, some = replace(STAGE, mixture={"captioned": 1}), images(12)
    bare = [(key, media, captions if n % 3 else []) for n, (key, media, captions) in enumerate(some)]
    dataset = datasets_of(tmp_path, f"[captioned.mine]\n{write_folder(tmp_path, bare)}", stage)["captioned"]
    found = [
        dataset.draw(budget) for number in range(12) for budget in budgets(TASKS["captioned"], 3, "captioned", number)
    ]
    assert {one.value.caption for one in found} == {caption for *_, both in bare for caption in both}
    broken = {entry for one in found for entry in one.broken}
    assert {entry.key for entry in broken} == {f"{n:02d}.png" for n in range(0, 12, 3)}
    assert all(
        isinstance(entry, Broken) and "has no caption, and captioned is trained" in entry.reason for entry in broken
    )


def test_datasets_are_pickled_small(tmp_path: Path) -> None:
    datasets = datasets_of(tmp_path, f"[image.mine]\n{write_shards(tmp_path, images())}")
    data = pickle.dumps(datasets)
    assert len(data) < 5000
    copy = pickle.loads(data)  # noqa: S301 - our own, made in this line
    assert copy.data == datasets.data
    result, expected = (batch(IMAGES, one, "image", 0) for one in (datasets, copy))
    assert torch.equal(result.tokens.feats, expected.tokens.feats)


# The file


def test_a_tasks_own_table_goes_before_that_of_its_modality(tmp_path: Path) -> None:
    write_folder(tmp_path, images())
    tables = "[image.a]\nprocedural = 'mixed'\n[captioned.b]\nfolder = 'photos'\n[video.c]\nprocedural = 'mixed'\n"
    datasets = datasets_of(tmp_path, "most_broken = 0.25\n" + tables, STAGE)
    assert {name: dataset.mixture.position(0)[0] for name, dataset in datasets.items()} == {
        "image": "a",
        "captioned": "b",
        "video": "c",
    }
    assert datasets.data.most_broken == 0.25
    assert load_datasets("procedural", STAGE).data.most_broken == 0.1


def test_paths_are_relative_to_the_file_or_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, images())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for folder in ("photos", "./photos", str(tmp_path / "photos")):
        assert datasets_of(tmp_path, f"[image.mine]\nfolder = '{folder}'")["image"].draw(Budget(0, 1, 16, (0,))).value


def test_one_file_may_serve_all_stages_of_the_curricula(tmp_path: Path) -> None:
    names = {name for stages in CURRICULA.values() for stage in stages.values() for name in stage.used}
    names -= {"crop", "surface"}
    (tmp_path / "all.toml").write_text("".join(f"[{name}.any]\nprocedural = 'mixed'\n" for name in sorted(names)))
    for stages in CURRICULA.values():
        for stage in stages.values():
            datasets = load_datasets(tmp_path / "all.toml", stage)
            assert set(datasets) == set(stage.used) & names


REFUSED = {
    "": "no source for the task image; add a table [image.SOURCE] with one of folder, shards, table, procedural.",
    "[video.x]\nprocedural = 'mixed'": "no source for the task image",
    "[image.x": "it is not valid TOML",
    "sed = 1": "there is no table or setting 'sed'; there are image, video, asset, captioned",
    "[imag.x]\nprocedural = 'mixed'": "there is no table or setting 'imag' (did you mean image?); there are",
    "[surface.x]\nprocedural = 'mixed'": "there is no table or setting 'surface'",
    "seed = -1": "data.toml, seed cannot be -1: expected a whole number >= 0.",
    "seed = true": "seed cannot be True: expected a whole number",
    "most_broken = 2": "data.toml, most_broken cannot be 2: expected a number <= 1.0.",
    "most_broken = 'all'": "most_broken cannot be all: expected a number, got text.",
    "image = 'photos'": "data.toml, [image] cannot be photos: expected a table, got text.",
    "[image]": "data.toml, [image] cannot be {}: expected a table of length >= 1.",
    "[image]\nfolder = 'photos'": "data.toml, [image.folder] cannot be photos: expected a table, got text.",
    "[image.x]": "[image.x] must have one of folder, shards, table, procedural; it has none.",
    "[image.x]\nfolder = 'a'\nshards = 'b'": "table, procedural; it has folder and shards.",
    "[image.x]\nfolder = 'a'\nwieght = 2": "[image.x]: there is no key 'wieght' (did you mean weight?); there are",
    "[image.x]\nfolder = 3": "data.toml, [image.x], folder cannot be 3: expected text or none, got a whole number.",
    "[image.x]\nfolder = ''": "[image.x], folder cannot be : expected text of length >= 1",
    "[image.x]\nfolder = 'a'\nweight = 0": "data.toml, [image.x], weight cannot be 0: expected a whole number >= 1.",
    "[image.x]\nfolder = 'a'\nweight = 1.5": "[image.x], weight cannot be 1.5: expected a whole number, got a number.",
    "[image.x]\nfolder = 'a'\nweight = true": "[image.x], weight cannot be True: expected a whole number",
    "[image.x]\nprocedural = false": "[image.x], procedural cannot be False: expected text",
    "[image.x]\nprocedural = 'some'": "no some for the modality image; it has mixed, labelled, grounded, scenes, "
    "counted, placed.",
    "[image.x]\nprocedural = 'labels'": "[image.x]: the generator has no labels",
    "[image.x]\nfolder = 'a'\ncaptions = 'b'": "[image.x]: media and captions name the columns of a table;",
    "[image.x]\ntable = 'a'\nmedia = 1": "[image.x], media cannot be 1: expected text",
    "[image.x]\nfolder = 'missing'": "[image.x]: Cannot list the folder",
    "[image.x]\nshards = 'missing.tar'": "[image.x]: There is no shard",
    "[image.x]\ntable = 'missing.parquet'": "[image.x]: There is no table",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_wrong_file_gets_one_sentence(text: str, tmp_path: Path) -> None:
    with pytest.raises(AtokenError, match=r"^[^\n]*data\.toml[^\n]*\.$") as refused:
        datasets_of(tmp_path, text, IMAGES)
    assert REFUSED[text] in str(refused.value)


def test_sources_without_captions_are_refused_for_a_task_on_captions(tmp_path: Path) -> None:
    stage, bare = replace(STAGE, mixture={"captioned": 1}), [(key, media, []) for key, media, _ in images()]
    with pytest.raises(MediaError, match=r"data\.toml, \[image\.mine\]: none of the first 16 samples has a caption"):
        datasets_of(tmp_path, f"[image.mine]\n{write_folder(tmp_path, bare)}", stage)


def test_a_file_that_cannot_be_read_gets_one_sentence(tmp_path: Path) -> None:
    sentence = r"^Cannot read [^\n]*; name a TOML file or a folder of media, or write procedural\.$"
    with pytest.raises(MediaError, match=sentence):
        read_data(tmp_path / "missing.toml", ())


def test_a_folder_stands_for_the_file_that_names_it(tmp_path: Path) -> None:
    named = datasets_of(tmp_path, f"[image.files]\n{write_folder(tmp_path, images())}\n")
    result, expected = (
        batch(IMAGES, datasets, "image", 0) for datasets in (load_datasets(tmp_path / "photos", IMAGES), named)
    )
    assert torch.equal(result.tokens.feats, expected.tokens.feats)
    assert result.captions == expected.captions


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a = " + b"[" * 100_000, b"\0"])
def test_a_file_that_is_no_text_gets_one_sentence(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "data.toml").write_bytes(data)
    with pytest.raises(
        MediaError, match=r"^Cannot read [^\n]*: it is not (valid TOML \([^\n]*\)|a text file; [^\n]*)\.$"
    ):
        read_data(tmp_path / "data.toml", ())


def test_images_are_filmed_for_a_task_on_videos(tmp_path: Path) -> None:
    write_folder(tmp_path, images(3))
    data = tmp_path / "data.toml"
    data.write_text("[video.filmed]\nfolder = 'photos'\nfilmed = true\n")
    dataset = load_datasets(data, replace(STAGE, mixture={"video": 1}))["video"]
    task = TASKS["video"]
    budget = budgets(task, 3, "video", 0)[0]
    drawn = dataset.draw(budget)
    assert drawn.broken == ()
    rows, columns = shape(task, budget)
    assert drawn.value.tokens.lengths == (budget.length * rows * columns,)
    assert torch.equal(drawn.value.tokens.feats, dataset.draw(budget).value.tokens.feats)


def test_a_path_may_lead_to_what_was_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, images(2))
    monkeypatch.setenv("ATOKEN_CACHE", str(tmp_path))
    data = tmp_path / "elsewhere.toml"
    data.write_text("[image.photos]\nfolder = 'fetched:photos'\n")
    assert read_data(data, []).tables["image"]["photos"].folder == str(tmp_path / "photos")
    monkeypatch.setenv("ATOKEN_CACHE", str(tmp_path / "nothing"))
    with pytest.raises(MediaError) as refused:
        load_datasets(data, IMAGES)
    assert str(refused.value) == f"{data}, [image.photos]: There is no {tmp_path}/nothing/photos; run `atoken fetch photos`."


def test_parts_of_images_are_not_scaled_or_are_larger(tmp_path: Path) -> None:
    """Each pixel of this image says where it is."""
    height, width = 200, 300
    y, x = np.mgrid[:height, :width]
    where = np.stack([y, x % 256, x // 256 * 40], -1).astype(np.uint8)
    Image.fromarray(where).save(tmp_path / "where.png")
    sample = FolderSource(tmp_path)[0]
    native = 0
    for n in range(40):
        frames = crop_image(sample, 16 + n, 4.0, np.random.default_rng(n))
        assert frames.shape[1] * frames.shape[2] <= (16 + n) * 256
        top, left = frames[0, 0, 0, 0], int(frames[0, 0, 0, 1]) + 256 * (int(frames[0, 0, 0, 2]) // 40)
        part = where[top : top + frames.shape[1], left : left + frames.shape[2]]
        native += np.array_equal(frames[0], part)
    assert 12 <= native <= 28
    assert crop_image(sample, 256, 4.0, np.random.default_rng(0)).shape == (1, 192, 288, 3)  # all that there is
    rows, columns = np.array([crop_image(sample, 24, 4.0, np.random.default_rng(n)).shape[1:3] for n in range(40)]).T
    assert (rows / columns).min() < 0.6 < 1.4 < (rows / columns).max()


def test_an_image_smaller_than_a_patch_is_enlarged_to_one(tmp_path: Path) -> None:
    Image.new("RGB", (9, 5)).save(tmp_path / "small.png")
    assert crop_image(FolderSource(tmp_path)[0], 16, 4.0, np.random.default_rng(0)).shape == (1, 16, 16, 3)


def test_cropped_images_keep_most_of_themselves_for_captions_and_are_mirrored_unless_they_name_a_side(
    tmp_path: Path,
) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], (64, 64, 3))
    (tmp_path / "photos").mkdir()
    for key, caption in (("a", "a ramp"), ("b", "light on the right")):
        Image.fromarray(ramp).save(tmp_path / "photos" / f"{key}.png")
        (tmp_path / "photos" / f"{key}.txt").write_text(caption)
    stage = replace(STAGE, mixture={"image": 1, "captioned": 1})
    datasets = datasets_of(tmp_path, "[image.parts]\nfolder = 'photos'\ncropped = true\n", stage)
    mirrored = {"a ramp": 0, "light on the right": 0}
    for budget in (one for number in range(15) for one in budgets(TASKS["captioned"], 3, "captioned", number)):
        value = datasets["captioned"].draw(budget).value
        row = value.tokens.feats.reshape(4, 4, 16, 16, 3)[0, :, 0, :, 0].flatten()
        assert abs(float(row[-1] - row[0])) > 0.7 * 2
        mirrored[value.caption] += bool(row[-1] < row[0])
        assert torch.equal(value.tokens.feats, datasets["captioned"].draw(budget).value.tokens.feats)
    assert mirrored["a ramp"] > 5
    assert mirrored["light on the right"] == 0


@pytest.mark.parametrize(
    ("table", "key"),
    [("video.x]\nfolder = 'photos'", "cropped"), ("image.x]\nfolder = 'photos'", "filmed")]
    + [(f"{modality}.x]\nprocedural = 'mixed'", key) for modality, key in (("image", "cropped"), ("video", "filmed"))],
)
def test_what_is_for_image_files_is_refused_elsewhere(table: str, key: str, tmp_path: Path) -> None:
    write_folder(tmp_path, images(2))
    stage = replace(STAGE, mixture={table[:5]: 1})
    with pytest.raises(MediaError, match=rf"\.x\]: {key} is for sources of image files in a table of"):
        datasets_of(tmp_path, f"[{table}\n{key} = true\n", stage)


def test_the_data_of_nano_serve_every_task_with_captions_of_what_is_recorded() -> None:
    data = read_data(Path(__file__).parents[2] / "scripts" / "nano.toml", [])
    fields = Photo("train/any", b"", "any", "any", "any").record()
    for stage in CURRICULA["nano"].values():
        for name, task in stage.tasks.items():
            if task.modality in MODALITIES:
                for origin in data.origins(name, task.modality)[1].values():
                    path = origin.procedural or origin.shards or origin.folder
                    assert path in MAKERS[task.modality] or "/train" in path
                    assert not task.texts or path in MAKERS[task.modality] or origin.templates
                    assert all(template.format_map(fields) for template in origin.templates)
