"""Networks of features: small ones made here, AToken's own, and, where its package is installed, Inception."""

import hashlib
import importlib.util
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from atoken.errors import AtokenError, CheckpointError, MissingExtraError
from atoken.metrics import efficientnet, i3d
from atoken.metrics.vgg import resized
from atoken.modalities.pixels import patchify, to_values
from atoken.tokenizer import Tokenizer
from eval import networks
from eval.atoken_features import ATokenFeatures
from eval.generation import evaluate_generation, network_of
from eval.measures import EFFICIENTNET, IMAGES, Needs
from eval.networks import I3D, EfficientNetLite0, Inception, TorchScriptNetwork, middle_square
from tests.eval.plain_network import images
from tests.plain_i3d import plain_i3d
from tests.random_networks import i3d_variables, pinned, randomised
from tests.tokenizer.texts import small_texts_model, words
from tests.tolerances import FP32

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # TorchScript is what files come in

CLIP = np.random.default_rng(1).integers(0, 256, (12, 20, 33, 3), dtype=np.uint8)


class Small(nn.Module):
    """Pooled features of images of any size."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, stride=2)

    def forward(self, images: torch.Tensor):
        return self.conv(images.float() / 255).relu().mean((2, 3))


class Pair(nn.Module):
    """Not (B, D)."""

    def forward(self, images: torch.Tensor):
        return images.float().mean((2, 3)), images


class Flat(nn.Module):
    """As wide as its image."""

    def forward(self, images: torch.Tensor):
        return images.float().flatten(1)


class SmallI3D(nn.Module):
    """With the face of StyleGAN-V's file: (B, 3, T, 224, 224) in [-1, 1]."""

    def forward(self, videos: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False):
        assert not rescale
        assert not resize
        assert return_features
        return torch.cat([videos.mean((2, 3, 4)), videos.amax((2, 3, 4)), videos[:, :, -1].mean((2, 3))], 1)


def saved(module, path):
    """The file of a scripted module, and its SHA-256."""
    torch.jit.script(module).save(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def small(tmp_path):
    return TorchScriptNetwork(tmp_path / "small.pt", saved(Small(), tmp_path / "small.pt"), trust=True)


def test_a_script_sees_every_frame_in_order_whatever_the_sizes(small):
    frames = [images(1, 3), images(2, 1, 24), images(3, 70), images(4, 2, 24)]
    found = small.features(frames)
    alone = [small.features([frame[None]]) for video in frames for frame in video]
    assert found["pooled"].shape == (76, 6)
    np.testing.assert_allclose(found["pooled"], np.concatenate([one["pooled"] for one in alone]), atol=FP32)
    last = torch.from_numpy(images(4, 2, 24)).movedim(3, 1)
    with torch.inference_mode():
        np.testing.assert_allclose(found["pooled"][-2:], Small()(last).numpy(), atol=FP32)
    assert not small.videos


def test_a_script_runs_only_on_purpose_and_only_if_it_is_the_file(tmp_path):
    path = tmp_path / "small.pt"
    digest = saved(Small(), path)
    with pytest.raises(CheckpointError, match="runs the code in it: pass --trust"):
        TorchScriptNetwork(path, digest, trust=False)
    with pytest.raises(CheckpointError, match="instead of 00000000…"):
        TorchScriptNetwork(path, "0" * 64, trust=True)
    with pytest.raises(CheckpointError, match=r"Cannot read .*No such file"):
        TorchScriptNetwork(tmp_path / "other.pt", digest, trust=True)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a TorchScript file"):
        TorchScriptNetwork(path, hashlib.sha256(b"nothing").hexdigest(), trust=True)


def test_a_script_that_does_not_do_as_said_is_one_sentence(tmp_path, small):
    digest = saved(Pair(), tmp_path / "pair.pt")
    with pytest.raises(CheckpointError, match=r"does not return \(B, D\)\."):
        TorchScriptNetwork(tmp_path / "pair.pt", digest, trust=True).features([images(1, 1)])
    with pytest.raises(CheckpointError, match="fails on images of 2x1"):
        small.features([np.zeros((1, 1, 2, 3), np.uint8)])
    flat = TorchScriptNetwork(tmp_path / "flat.pt", saved(Flat(), tmp_path / "flat.pt"), trust=True)
    with pytest.raises(AtokenError, match="differ in width"):
        flat.features([images(1, 1), images(1, 1, 24)])


@pytest.mark.parametrize(("height", "width"), [(20, 33), (33, 20), (16, 16), (60, 40)])
def test_the_middle_square_is_bilinear(height, width):
    """Against weights of two neighbours, written out along each axis."""
    side, video = 24, np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    longer = -(-max(height, width) * side // min(height, width))
    rows, columns = (side, longer) if height < width else (longer, side)
    wanted = video / 127.5 - 1
    for axis, (length, size) in ((1, (height, rows)), (2, (width, columns))):
        at = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, None)
        low = np.floor(at).astype(int)
        high, share = np.minimum(low + 1, length - 1), (at - low).reshape(-1, *[1] * (3 - axis))
        wanted = wanted.take(low, axis) * (1 - share) + wanted.take(high, axis) * share
    top, left = (rows - side) // 2, (columns - side) // 2
    wanted = wanted[:, top : top + side, left : left + side].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(middle_square(video, side).numpy(), wanted, atol=FP32)


def test_i3d_sees_the_first_frames_of_whole_videos(tmp_path, monkeypatch):
    digest = saved(SmallI3D(), tmp_path / "i3d_torchscript.pt")
    monkeypatch.setattr(networks, "I3D_FILE", replace(networks.I3D_FILE, sha256=digest))
    network = I3D(tmp_path, trust=True, frames=10)
    found = network.features([CLIP, CLIP[:10], CLIP[1:]])["pooled"]
    assert found.shape == (3, 9)
    np.testing.assert_allclose(found[0], found[1], atol=FP32)
    square = middle_square(CLIP[1:11], 224).numpy()
    wanted = np.concatenate([square.mean((0, 2, 3)), square.max((0, 2, 3)), square[-1].mean((1, 2))])
    np.testing.assert_allclose(found[2], wanted, atol=FP32)
    assert network.record["frames"] == "the first 10"
    with pytest.raises(AtokenError, match="9 frames, FVD needs 10"):
        network.features([CLIP[:9]])
    whole = I3D(tmp_path, trust=True, frames=None)
    assert (whole.features([CLIP])["pooled"] != found[:1]).any()
    with pytest.raises(AtokenError, match="8 frames, FVD needs 9"):
        whole.features([CLIP[:8]])
    with pytest.raises(CheckpointError, match="--trust"):
        I3D(tmp_path, trust=False)


def test_i3d_is_the_plain_one_where_its_file_is(tmp_path, monkeypatch):
    variables = i3d_variables()
    file = pinned(i3d.I3D_WEIGHTS, tmp_path, lambda opened: pickle.dump(variables, opened))
    monkeypatch.setattr(i3d, "I3D_WEIGHTS", file)
    (tmp_path / "i3d_torchscript.pt").write_bytes(b"not looked at")
    network = I3D(tmp_path, trust=False, frames=9)
    with torch.inference_mode():
        wanted = i3d.published_i3d(variables)(middle_square(CLIP[:9], 224).movedim(0, 1)[None])
    np.testing.assert_allclose(network.features([CLIP])["pooled"], wanted, atol=FP32 * float(wanted.abs().max()))
    assert network.record["frames"] == "the first 9"


class ScriptedI3D(nn.Module):
    """A traced network of every layer behind the face of StyleGAN-V's file."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, videos: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False):
        assert not rescale
        assert not resize
        assert return_features
        return self.layers(videos)[-1]


class PlainI3D(nn.Module):
    def __init__(self, variables):
        super().__init__()
        self.variables = variables

    def forward(self, videos_BCTHW):
        return tuple(plain_i3d(videos_BCTHW.movedim(1, -1), self.variables).values())


@torch.inference_mode()
def test_i3d_in_torchscript_gives_the_features_of_the_plain_one_in_every_layer(tmp_path, monkeypatch):
    variables = i3d_variables()
    folders = tmp_path / "plain", tmp_path / "script"
    for folder in folders:
        folder.mkdir()
    file = pinned(i3d.I3D_WEIGHTS, folders[0], lambda opened: pickle.dump(variables, opened))
    video = middle_square(CLIP[:9], 224).movedim(0, 1)[None]
    script = ScriptedI3D(torch.jit.trace(PlainI3D(variables), (video,), check_trace=False))
    digest = saved(script, folders[1] / "i3d_torchscript.pt")
    monkeypatch.setattr(networks, "I3D_FILE", replace(networks.I3D_FILE, sha256=digest))
    for module in (i3d, networks):
        monkeypatch.setattr(module, "I3D_WEIGHTS", file)
    monkeypatch.setenv("ATOKEN_CACHE", str(tmp_path))
    layers = torch.jit.load(folders[1] / "i3d_torchscript.pt").layers(video)
    for (name, plain), scripted in zip(i3d.published_i3d(variables).layers(video), layers, strict=True):
        torch.testing.assert_close(plain, scripted, rtol=0, atol=FP32 * float(scripted.abs().max()), msg=name)
    plain, scripted = (I3D(folder, trust=True, frames=9) for folder in folders)
    assert {plain.checksum, scripted.checksum} == {file.sha256, digest}
    wanted = scripted.features([CLIP])["pooled"]
    np.testing.assert_allclose(plain.features([CLIP])["pooled"], wanted, rtol=0, atol=FP32 * np.abs(wanted).max())


@pytest.fixture
def efficientnet_folder(tmp_path, monkeypatch):
    state = randomised(efficientnet.EfficientNetLite0()).state_dict()
    file = pinned(efficientnet.EFFICIENTNET_FILE, tmp_path, lambda opened: torch.save(state, opened))
    monkeypatch.setattr(efficientnet, "EFFICIENTNET_FILE", file)
    return tmp_path


def test_efficientnet_sees_images_at_its_own_size(efficientnet_folder):
    frames = [images(1, 1, 60)[:, :, :40], images(2, 2)]
    metric = IMAGES[EFFICIENTNET](Needs(None, weights=efficientnet_folder))
    assert (metric.name, metric.record["network"]) == ("Fréchet (EfficientNet-Lite0)", "EfficientNet-Lite0")
    found = metric.network.features(frames)
    assert (found["pooled"].shape, found["probabilities"].shape) == ((3, 1280), (3, 1000))
    network = efficientnet.load_efficientnet(efficientnet_folder)
    for row, image in enumerate([*frames[0], *frames[1]]):
        values = resized(torch.from_numpy(image).movedim(2, 0)[None], 224) / 127.5 - 1
        features, logits = network(values)
        for kind, wanted in (("pooled", features), ("probabilities", logits.softmax(1))):
            np.testing.assert_allclose(found[kind][row], wanted[0], rtol=0, atol=FP32 * float(wanted.max()))


def test_numbers_of_efficientnet_are_not_called_those_of_inception(efficientnet_folder):
    for seed, name in enumerate(("samples", "reference")):
        np.savez(efficientnet_folder / f"{name}.npz", images(seed, 5))
    network = network_of("efficientnet-lite0", efficientnet_folder, "cpu", trust=False)
    found = evaluate_generation(*(efficientnet_folder / f"{name}.npz" for name in ("samples", "reference")), network)
    names = {f"{name} (EfficientNet-Lite0)" for name in ("Fréchet", "class score", "precision", "recall")}
    assert {name for name in found["numbers"] if name.endswith(")")} == names
    assert all("(EfficientNet-Lite0)" in name for name in found["numbers"])
    assert found["numbers"]["Fréchet (EfficientNet-Lite0)"] > 0


def test_missing_weights_say_which_and_how_to_get_them(tmp_path):
    files = (networks.INCEPTION.name, i3d.I3D_WEIGHTS.name, efficientnet.EFFICIENTNET_FILE.name)
    for build, name in zip((Inception, lambda one: I3D(one, trust=True), EfficientNetLite0), files, strict=True):
        with pytest.raises(CheckpointError, match=f"{name} is needed .*a folder that you name"):
            build(None)
        with pytest.raises(CheckpointError, match=f"Cannot read .*{name}"):
            build(tmp_path)
        (tmp_path / name).write_bytes(b"another")
        with pytest.raises(CheckpointError, match="is not the published file"):
            build(tmp_path)
    (tmp_path / i3d.I3D_WEIGHTS.name).unlink()
    (tmp_path / "i3d_torchscript.pt").write_bytes(b"another")
    with pytest.raises(CheckpointError, match=r"i3d_torchscript\.pt is not the published file"):
        I3D(tmp_path, trust=True)


def test_a_missing_package_says_how_to_install_it(tmp_path, monkeypatch):
    file = tmp_path / networks.INCEPTION.name
    torch.save({}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(networks, "INCEPTION", replace(networks.INCEPTION, sha256=digest))
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)  # Python's own way to say that there is none
    with pytest.raises(MissingExtraError, match=r"torch-fidelity: pip install 'atoken\[inception\]'"):
        Inception(tmp_path)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(small_texts_model(), "small", words())


def test_atokens_features_are_its_vectors_and_cells(tokenizer):
    network, frames = ATokenFeatures(tokenizer), [images(1, 2, 48), images(2, 1, 96)[:, :, :60]]
    found = network.features(frames)
    every = [frame for video in frames for frame in video]
    pooled = torch.stack([tokenizer.encode(frame).pooled for frame in every])
    np.testing.assert_allclose(found["pooled"], pooled.numpy(), atol=FP32)
    for row, frame in zip(found["spatial"], every, strict=True):
        np.testing.assert_allclose(row, cells_of(tokenizer, frame[None]), atol=FP32)
    assert network.checksum == tokenizer.fingerprint


def cells_of(tokenizer, video):
    """The first 7 features, put in their places by coordinates, and averaged over times and over cells."""
    with torch.inference_mode():
        tokens = tokenizer.model.encode(patchify(to_values(video))).features
    _, rows, columns, _ = (int(size) for size in tokens.coords.amax(0) + 1)
    total, count = np.zeros((rows, columns, 7)), 0
    for (time, row, column, _), feats in zip(tokens.coords.tolist(), tokens.feats.numpy(), strict=True):
        total[row, column] += feats[:7]
        count = max(count, time + 1)
    grid, cells = total / count, np.zeros((8, 8, 7))
    for i in range(8):
        for j in range(8):
            part = grid[i * rows // 8 : -(-(i + 1) * rows // 8), j * columns // 8 : -(-(j + 1) * columns // 8)]
            cells[i, j] = part.mean((0, 1))
    return cells.ravel()


def test_atoken_sees_videos_whole_if_asked(tokenizer):
    videos = [CLIP, CLIP[:3]]
    found = ATokenFeatures(tokenizer, videos=True).features(videos)
    assert found.keys() == {"pooled", "spatial"}
    for index, video in enumerate(videos):
        np.testing.assert_allclose(found["pooled"][index], tokenizer.encode(video).pooled.numpy(), atol=FP32)
        np.testing.assert_allclose(found["spatial"][index], cells_of(tokenizer, video), atol=FP32)
    assert len(ATokenFeatures(tokenizer).features(videos)["pooled"]) == 15


BROKEN_TORCHVISION = """
import sys
from pathlib import Path
folder = Path(sys.argv[1]) / "torchvision"
folder.mkdir()
(folder / "__init__.py").write_text("from . import operators\\nvalue = 7\\n")
(folder / "operators.py").write_text('''
import torch
for name in ("nms", "qnms"):  # what torchvision does at import, and what fails where its kernels did not load
    torch.library.register_fake(f"torchvision::{name}")(lambda dets, scores, iou_threshold: scores)
''')
sys.path.insert(0, sys.argv[1])
try:
    import torchvision
except RuntimeError as error:
    assert "operator torchvision::nms does not exist" in str(error), error
else:
    raise AssertionError("this torchvision should fail")
from eval.torchvision_step import mend_torchvision
assert mend_torchvision() and mend_torchvision()
import torchvision
assert torchvision.value == 7
"""

RANDOM_INCEPTION = """
import hashlib, io, sys
from dataclasses import replace
from pathlib import Path
from eval.torchvision_step import mend_torchvision
mend_torchvision()  # before transformers, which looks for torchvision, too
import numpy as np, torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Extractor
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as resize
from atoken.tokenizer import Tokenizer
from eval import networks

folder, loads = Path(sys.argv[1]), Extractor.load_state_dict
Extractor.load_state_dict = lambda self, state: None  # random weights
torch.manual_seed(0)
torch.save({}, folder / "blank")
drawn = Extractor("drawn", ["2048", "logits_unbiased"], feature_extractor_weights_path=folder / "blank")
Extractor.load_state_dict = loads
file = folder / networks.INCEPTION.name
torch.save(drawn.state_dict(), file)
networks.INCEPTION = replace(networks.INCEPTION, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
network = networks.Inception(folder)

frames = [np.random.default_rng(size).integers(0, 256, (1, size, 40, 3), dtype=np.uint8) for size in (64, 40)]
found = network.features(frames)
for row, video in enumerate(frames):
    pixels = torch.from_numpy(video).movedim(3, 1)
    with torch.inference_mode():
        pooled, logits = drawn(pixels)
        map = (resize(pixels.float(), size=(299, 299), align_corners=False) - 128) / 128
        names = list(drawn._modules)
        for name in names[: names.index("Mixed_6d")]:
            map = drawn._modules[name](map)
        map = drawn.Mixed_6d.branch1x1(map)
    assert map.shape == (1, 192, 17, 17)
    assert np.allclose(found["pooled"][row], pooled[0], atol=1e-5)
    assert np.allclose(found["probabilities"][row], logits[0].double().softmax(0), atol=1e-5)
    assert np.allclose(found["spatial"][row], map[0, :7].movedim(0, 2).flatten(), atol=1e-5)
"""


def run(script, folder):
    """In a process of its own: what is declared to torch cannot be taken back."""
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="a real torchvision is installed")
def test_a_torchvision_without_its_kernels_is_mended(tmp_path):
    run(BROKEN_TORCHVISION, tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed")
def test_inceptions_features_are_those_of_its_layers(tmp_path):
    run(RANDOM_INCEPTION, tmp_path)
