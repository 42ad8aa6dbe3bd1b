"""Folders and files of samples against references: the same numbers by every way in."""

import hashlib

import numpy as np
import pytest

from atoken.errors import AtokenError, MediaError
from atoken.io import Image
from atoken.metrics.frechet import Gaussian, frechet_distance
from eval.adm import write_statistics
from eval.generation import NO_IMAGES, NO_PROBABILITIES, NO_SPATIAL, evaluate_generation, image_statistics
from eval.metrics.distribution import InceptionScore, PrecisionRecall
from eval.networks import EfficientNetLite0
from tests.eval.plain_network import PlainNetwork, images
from tests.tolerances import MOMENTS

SCORE = InceptionScore(split=20, cell=4)


def folder(path, every):
    path.mkdir()
    for index, pixels in enumerate(every):
        Image(pixels).save(path / f"{index:04}.png")
    return path


@pytest.fixture
def made(tmp_path):
    """Samples and their reference, as folders and as files."""
    prediction, target = images(1, 50), images(2, 60)
    np.savez(tmp_path / "prediction.npz", prediction)  # arr_0, as ADM's scripts have it
    np.savez(tmp_path / "target.npz", target)
    folder(tmp_path / "prediction", prediction)
    folder(tmp_path / "target", target)
    return tmp_path


def moments(every, kind):
    rows = PlainNetwork().features(every[:, None])[kind].astype(float)
    return Gaussian(rows.mean(0), np.cov(rows, rowvar=False))


def test_numbers_are_those_of_the_features(made):
    network, seen = PlainNetwork(), []
    found = evaluate_generation(
        made / "prediction", made / "target", network, score=SCORE, batch=16, progress=seen.append
    )
    numbers = found["numbers"]
    for name, kind in (("Fréchet (plain)", "pooled"), ("spatial Fréchet (plain)", "spatial")):
        wanted = frechet_distance(moments(images(1, 50), kind), moments(images(2, 60), kind)).value
        assert numbers[name] == pytest.approx(wanted, rel=MOMENTS)
        assert numbers[f"{name} items"] == 50
    assert 1 < numbers["class score (plain)"] < 12
    assert 0 <= numbers["precision (plain)"] <= 1
    assert (numbers["precision (plain) items"], numbers["recall (plain) items"]) == (50, 60)
    assert found["left_out"] == {}
    assert seen == [16, 16, 16, 2, 16, 16, 16, 12]
    assert network.calls == 8  # of 16 images at most, and no image twice


def test_folders_and_files_give_the_same(made):
    results = [
        evaluate_generation(made / prediction, made / target, PlainNetwork(), score=SCORE)
        for prediction in ("prediction", "prediction.npz")
        for target in ("target", "target.npz")
    ]
    assert all(one["record"] == results[0]["record"] for one in results)
    assert all(one["numbers"] == results[0]["numbers"] for one in results)


def test_statistics_stand_for_their_images(made):
    network = PlainNetwork()
    write_statistics(made / "s.npz", image_statistics(made / "target", network), network.checksum)
    known = evaluate_generation(made / "prediction", made / "s.npz", network, score=SCORE)
    seen = evaluate_generation(made / "prediction", made / "target", network, score=SCORE)
    assert {**known["left_out"]} == {"precision (plain)": NO_IMAGES, "recall (plain)": NO_IMAGES}
    for name, number in known["numbers"].items():
        assert number == pytest.approx(seen["numbers"][name], rel=MOMENTS)
    assert known["record"]["statistics items"] == "60"


def test_a_file_of_both_gives_distances_by_statistics_and_precision_by_images(made):
    whole = moments(images(9, 300), "pooled")
    np.savez(made / "adm.npz", images(2, 60), mu=whole.mean_D, sigma=whole.covariance_DD)
    found = evaluate_generation(made / "prediction", made / "adm.npz", PlainNetwork(), score=SCORE)
    seen = evaluate_generation(made / "prediction", made / "target", PlainNetwork(), score=SCORE)
    wanted = frechet_distance(moments(images(1, 50), "pooled"), whole).value
    assert found["numbers"]["Fréchet (plain)"] == pytest.approx(wanted, rel=MOMENTS)
    assert found["numbers"]["precision (plain)"] == seen["numbers"]["precision (plain)"]
    assert found["numbers"]["recall (plain)"] == seen["numbers"]["recall (plain)"]
    assert "mu_s" in found["left_out"]["spatial Fréchet (plain)"]


def test_a_set_against_itself(made):
    found = evaluate_generation(made / "prediction", made / "prediction.npz", PlainNetwork(), score=SCORE)["numbers"]
    assert found["Fréchet (plain)"] <= MOMENTS
    assert found["spatial Fréchet (plain)"] <= MOMENTS
    assert (found["precision (plain)"], found["recall (plain)"]) == (1, 1)


def test_the_record_says_what_numbers_depend_on(made):
    record = evaluate_generation(made / "prediction", made / "target", PlainNetwork(), score=SCORE)["record"]
    assert all(isinstance(value, str) for value in record.values())
    assert record["samples items"] == "50"
    assert record["samples size"] == record["reference size"] == "12x12"
    assert record["weights"] == PlainNetwork.checksum
    assert record["resize"] == "none"
    digest = hashlib.sha256()
    for pixels in images(2, 60):
        digest.update(b"12 12 " + pixels.tobytes())
    assert record["reference sha256"] == digest.hexdigest()
    other = evaluate_generation(made / "prediction", made / "prediction", PlainNetwork(), crowd=PrecisionRecall(2))[
        "record"
    ]
    differing = {name for name in record if record[name] != other[name]}
    assert differing == {"reference items", "reference sha256", "class score (plain)", "precision and recall"}


def test_what_a_network_cannot_give_is_left_out_and_said(made):
    found = evaluate_generation(made / "prediction", made / "target", PlainNetwork(kinds=["pooled"]))
    assert found["left_out"] == {"spatial Fréchet (plain)": NO_SPATIAL, "class score (plain)": NO_PROBABILITIES}
    assert {"Fréchet (plain)", "precision (plain)"} <= found["numbers"].keys()


class Classifier(EfficientNetLite0):
    """Says that bright images are of class 1."""

    def __init__(self):
        pass

    def features(self, frames):
        bright = np.array([image.mean() > 127 for video in frames for image in video], int)
        return {"pooled": np.random.default_rng(0).normal(size=(len(bright), 2)), "probabilities": np.eye(1000)[bright]}


def test_accuracy_is_of_samples_in_folders_of_their_class(made):
    name = "classifier accuracy (EfficientNet-Lite0)"
    for number, levels in ((0, [0, 1, 2, 200]), (1, [255, 0])):
        (made / "classes" / str(number)).mkdir(parents=True)
        for level in levels:
            Image(np.full((4, 4, 3), level, np.uint8)).save(made / "classes" / str(number) / f"{level}.png")
    found = evaluate_generation(made / "classes", made / "target", Classifier())
    assert found["numbers"][name] == 4 / 6
    without = evaluate_generation(made / "prediction", made / "target", Classifier())
    assert "is in no folder of a class" in without["left_out"][name]


def test_accuracy_is_also_of_samples_with_labels_in_their_file(made):
    name, levels = "classifier accuracy (EfficientNet-Lite0)", [0, 1, 200, 255, 3]
    arrays = [np.full((4, 4, 3), level, np.uint8) for level in levels], [0, 0, 1, 1, 1]  # the last one is wrong
    np.savez(made / "numbered.npz", *arrays)
    np.savez(made / "named.npz", *arrays, classes=["n01440764", "n01443537"])
    np.savez(made / "other.npz", *arrays, classes=["red ring", "apple"])
    found = [
        evaluate_generation(made / f"{file}.npz", made / "target", Classifier())
        for file in ("numbered", "named", "other")
    ]
    assert [one["numbers"].get(name) for one in found] == [4 / 5, 4 / 5, None]
    assert "has no line for the folder red ring" in found[2]["left_out"][name]
    assert found[0]["record"]["samples labels"] == "not equally many of each"
    np.savez(made / "even.npz", arrays[0][:4], arrays[1][:4])
    even = evaluate_generation(made / "even.npz", made / "target", PlainNetwork(), score=SCORE)
    assert even["record"]["samples labels"] == "equally many of each"


def test_lossy_files_and_many_sizes_are_in_the_record(made):
    import PIL.Image

    PIL.Image.fromarray(images(3, 1, 24)[0]).save(made / "prediction" / "last.jpg", quality=95)
    record = evaluate_generation(made / "prediction", made / "target", PlainNetwork(), score=SCORE)["record"]
    assert record["samples pixels"] == "8 bits, lossy files: .jpg"
    assert record["samples size"] == "12x12, 24x24"


def test_errors_are_one_sentence(made):
    network = PlainNetwork()
    with pytest.raises(AtokenError, match="not finite"):
        evaluate_generation(folder(made / "one", images(1, 1)), made / "target", network)
    np.savez(made / "other.npz", x=np.zeros(3))
    with pytest.raises(MediaError, match="has no array arr_0"):
        evaluate_generation(made / "other.npz", made / "target", network)
    with pytest.raises(MediaError, match="no such file"):
        evaluate_generation(made / "prediction", made / "missing.npz", network)
    write_statistics(made / "wide.npz", {"pooled": moments(images(1, 60), "spatial")})
    with pytest.raises(AtokenError, match="12 and of 27 numbers"):
        evaluate_generation(made / "prediction", made / "wide.npz", network)
    Image(images(1, 1)[0], np.full((12, 12), 9, np.uint8)).save(made / "prediction" / "glass.png")
    with pytest.raises(MediaError, match="transparent"):
        evaluate_generation(made / "prediction", made / "target", network)
