"""A file of data is read as it is meant, or refused in one sentence."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atoken.data.synthetic.series import MAKERS
from atoken.errors import AtokenError, MediaError
from atoken.modalities import MODALITIES
from atoken.photographs import Photo
from atoken.pretrain.batches import batch
from atoken.pretrain.curriculum import CURRICULA
from atoken.pretrain.data_file import read_data
from atoken.pretrain.datasets import load_datasets
from atoken.pretrain.packing import Budget
from tests.pretrain.small_data import IMAGES, STAGE, datasets_of, images, write_folder


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


def test_a_path_may_lead_to_what_was_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, images(2))
    monkeypatch.setenv("ATOKEN_CACHE", str(tmp_path))
    data = tmp_path / "elsewhere.toml"
    data.write_text("[image.photos]\nfolder = 'fetched:photos'\n")
    assert read_data(data, []).tables["image"]["photos"].folder == str(tmp_path / "photos")


def test_one_file_may_serve_all_stages_of_the_curricula(tmp_path: Path) -> None:
    names = {name for stages in CURRICULA.values() for stage in stages.values() for name in stage.used}
    names -= {"crop", "surface"}
    (tmp_path / "all.toml").write_text("".join(f"[{name}.any]\nprocedural = 'mixed'\n" for name in sorted(names)))
    for stages in CURRICULA.values():
        for stage in stages.values():
            datasets = load_datasets(tmp_path / "all.toml", stage)
            assert set(datasets) == set(stage.used) & names


def test_a_folder_stands_for_the_file_that_names_it(tmp_path: Path) -> None:
    named = datasets_of(tmp_path, f"[image.files]\n{write_folder(tmp_path, images())}\n")
    result, expected = (
        batch(IMAGES, datasets, "image", 0) for datasets in (load_datasets(tmp_path / "photos", IMAGES), named)
    )
    assert torch.equal(result.tokens.feats, expected.tokens.feats)
    assert result.captions == expected.captions


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


# What is refused


def test_what_was_not_fetched_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOKEN_CACHE", str(tmp_path))
    with pytest.raises(MediaError) as refused:
        datasets_of(tmp_path, "[image.mine]\nshards = 'fetched:photos/train'")
    found = f"{tmp_path}/data.toml, [image.mine]: There is no {tmp_path}/photos/train; run `atoken fetch photos`."
    assert str(refused.value) == found


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
    "[image.x]\nfolder = 'a'\nitems = 9": "[image.x]: items and side are of a series of the generator;",
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


def test_a_series_that_a_modality_lacks_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"\[video\.x\]: the generator has no scenes for the modality video; it has"):
        datasets_of(tmp_path, "[video.x]\nprocedural = 'scenes'", replace(STAGE, mixture={"video": 1}))


def test_sources_without_captions_are_refused_for_a_task_on_captions(tmp_path: Path) -> None:
    stage, bare = replace(STAGE, mixture={"captioned": 1}), [(key, media, []) for key, media, _ in images()]
    with pytest.raises(MediaError, match=r"data\.toml, \[image\.mine\]: none of the first 16 samples has a caption"):
        datasets_of(tmp_path, f"[image.mine]\n{write_folder(tmp_path, bare)}", stage)


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


def test_a_file_that_cannot_be_read_gets_one_sentence(tmp_path: Path) -> None:
    sentence = r"^Cannot read [^\n]*; name a TOML file or a folder of media, or write procedural\.$"
    with pytest.raises(MediaError, match=sentence):
        read_data(tmp_path / "missing.toml", ())


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a = " + b"[" * 100_000, b"\0"])
def test_a_file_that_is_no_text_gets_one_sentence(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "data.toml").write_bytes(data)
    with pytest.raises(
        MediaError, match=r"^Cannot read [^\n]*: it is not (valid TOML \([^\n]*\)|a text file; [^\n]*)\.$"
    ):
        read_data(tmp_path / "data.toml", ())
