"""The start of a small text side: the vector of a text is the sum of its words', whatever their order and number."""

import pytest
import torch
from torch.nn.functional import normalize

from atoken.model import ATokenModel
from atoken.presets import preset
from atoken.pretrain.curriculum import CURRICULA
from atoken.pretrain.datasets import load_datasets
from atoken.pretrain.start import text_start
from atoken.pretrain.start.vocabulary import vocabulary
from tests.model.sizes import small_model
from tests.tolerances import BAG

WORDS = ["red", "blue", "green", "teal", "circle", "square", "star", "ring", "on", "left", "of"]
SAID = [f"a {tint} {figure}" for tint in WORDS[:4] for figure in WORDS[4:8]]  # "a" tells nothing
SAID += [f"a {word}" for word in WORDS[8:]]


@pytest.fixture(scope="module")
def texts():
    sizes = preset("nano").text
    return vocabulary(SAID, sizes["max_position_embeddings"], sizes["vocab_size"])


@pytest.fixture(scope="module")
def tower(texts):
    torch.manual_seed(0)
    found = ATokenModel(preset("nano")).text_tower
    text_start.bag_of_words(found, texts(SAID))
    return found


@pytest.fixture(scope="module")
def sums(tower, texts):
    """Vectors of texts, and of the texts that the start has seen."""

    @torch.no_grad()
    def of(*said):
        return tower(texts(said)).pooler_output

    return of


@pytest.fixture(scope="module")
def vectors(sums):
    """Unit vectors of texts, before the mean of all is taken off."""
    nothing = sums("")[0]
    return lambda *said: normalize(sums(*said) - nothing, dim=1)


def test_the_order_of_words_does_not_matter_yet(vectors):
    result, expected = vectors("red circle left of blue star", "star of circle blue left red")
    assert result @ expected > 1 - BAG


def test_a_text_is_the_sum_of_its_words(vectors):
    single = vectors(*WORDS)
    for text in ("red circle", "teal ring on green square", "blue blue star"):
        parts = sum(single[WORDS.index(word)] for word in text.split())
        assert vectors(text)[0] @ normalize(parts, dim=0) > 0.95  # words are not quite of one length


def test_words_begin_far_apart(vectors):
    apart = vectors(*WORDS)
    cosines = (apart @ apart.T)[~torch.eye(len(WORDS), dtype=torch.bool)]
    assert cosines.abs().mean() < 0.15
    red_circle, red_square, blue_circle, blue_square = vectors("red circle", "red square", "blue circle", "blue square")
    assert red_circle @ blue_square < min(red_circle @ red_square, red_circle @ blue_circle) < 0.75


def test_a_word_that_all_texts_have_counts_for_nothing(sums):
    said = ["red star", "a red star", "a a red a star"]
    assert ((normalize(sums(*said), dim=1) @ normalize(sums(*said), dim=1).T) > 1 - BAG).all()


def test_the_mean_of_what_it_has_seen_is_zero(sums):
    seen = sums(*SAID)
    assert seen.mean(0).norm() < BAG * seen.norm(dim=1).mean()


def test_all_of_it_can_still_learn(tower):
    """No layer that adds nothing yet is cut off from the gradient for good."""
    tower.zero_grad()
    ids = torch.randint(2, 60, (4, tower.config.max_position_embeddings))
    tower(ids).pooler_output.square().sum().backward()
    for layer in tower.encoder.layers:
        assert all(w.weight.grad.abs().sum() > 0 for w in (layer.self_attn.out_proj, layer.mlp.fc2))
    first = tower.encoder.layers[0].self_attn
    assert all(w.weight.grad.abs().sum() > 0 for w in (first.q_proj, first.k_proj, first.v_proj))


def test_a_model_without_a_text_side_has_no_words():
    stage = CURRICULA["nano"]["1"]
    assert text_start.text_start(small_model(), load_datasets("procedural", stage).data, stage) is None
