"""Long work says so: estimates, bars, and when neither is shown."""

from argparse import Namespace

import pytest
import torch

from atoken.cli import console, pace
from tests.cli.cases import image
from tests.model.sizes import small_model


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(12.4, "12 s"), (59.6, "60 s"), (60, "1 min"), (133, "2 min 10 s"), (3599, "1 h 0 min"), (4900, "1 h 21 min")],
)
def test_durations_are_said_as_people_say_them(seconds, words):
    assert pace.spoken(seconds) == words


@pytest.mark.parametrize("b", [0.0, 1e-9])
def test_two_measurements_give_the_cost_of_any_length(b, monkeypatch):
    """Seconds of a block, a n + b n^2, are found again from those for few and many tokens."""
    a, stack = 1e-5, small_model().encoder
    monkeypatch.setattr(pace, "_timed", lambda _, side: a * side**2 + b * side**4)
    for tokens, tiles in ((1_000_000, 1), (4096, 1000)):
        expected = tiles * len(stack.blocks) * (a * tokens + b * tokens**2)
        assert pace.seconds(stack, tokens, tiles) == pytest.approx(expected)
    assert pace.seconds(stack, 100) == 0


def test_a_block_is_really_timed():
    stack = small_model().encoder
    assert 0 < pace._timed(stack, 8) < 60


@pytest.mark.parametrize("json", [False, True])
def test_an_estimate_comes_before_what_is_long_and_never_with_json(json, run, there, monkeypatch):
    monkeypatch.setattr(pace, "seconds", lambda *_: 133.0)
    code, _, error = run("encode", image(there / "a.png", 64, 64).name, *(["--json"] if json else []))
    assert code == 0
    said = "atoken: encode a.png: 16 tokens, about 2 min 10 s on this machine.\n"
    assert error == ("" if json else said)


def test_a_bar_counts_layers_and_changes_nothing(monkeypatch):
    model, x = small_model(), torch.randn(3, 8)
    counts = []
    monkeypatch.setattr(console.tqdm, "update", lambda bar, n=1: counts.append(n) or True)
    block = model.encoder.blocks[0] = torch.nn.Identity()
    with console.layers(model.encoder, "encode", 1, Namespace(json=False)):
        assert torch.equal(block(x), x)
    block(x)
    assert counts == [1]


def test_bars_are_not_shown_with_json_or_away_from_a_terminal(capsys):
    for json in (True, False):
        with console.progress(10, "decode", "frames", Namespace(json=json)) as shown:
            assert shown.disable
    assert capsys.readouterr().err == ""
