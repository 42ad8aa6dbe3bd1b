"""The same media give the same batches wherever they are kept; what a task draws depends on its budget alone."""

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

from atoken.data.loading import load_image, load_video
from atoken.data.mixing import Broken
from atoken.data.sources import FolderSource
from atoken.data.synthetic.labelled import FIGURE_PROMPTS, WAYS, class_of
from atoken.data.synthetic.procedural import make_image, make_video
from atoken.io import Video, write_video
from atoken.modalities.pixels import patchify, to_values
from atoken.pretrain.batches import batch
from atoken.pretrain.datasets import TaskDataset, generated, load_datasets, shape
from atoken.pretrain.packing import Budget, budgets
from atoken.train.recipe import Recipe
from tests.media.video_cases import moving
from tests.pretrain.small_data import IMAGES, STAGE, TASKS, datasets_of, images, write_folder

VALUES = {"image": 768, "video": 3072}  # of a patch: images have one frame


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
