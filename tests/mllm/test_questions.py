"""Questions have true answers, which are balanced, and depend on the seed and the index alone."""

import io
import pickle
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from atoken.errors import AtokenError
from atoken.mesh import Mesh
from mllm.conversation import MediaItem
from mllm.questions.asking import ASKERS
from mllm.questions.photographs import PhotographQuestions
from mllm.questions.phrases import phrases
from mllm.questions.synthetic import SyntheticQuestions
from tests.mllm.labelled_shard import write_shard

MODALITIES = [*ASKERS]
MOST_FREQUENT = {"yes/no": 0.5, "comparison": 0.5, "number": 0.35, "shape": 0.25, "colour": 0.2, "position": 0.25}


def made(conversation):
    """The sample of a conversation about one."""
    (item,) = conversation.media
    return item.source()


def caption(conversation):
    from atoken.data.synthetic.series import MAKERS

    source = conversation.media[0].source
    small = {"image": (32, 32), "video": (4, 32, 32), "asset": ()}[source.modality]
    return MAKERS[source.modality][source.series](source.seed, source.index, *small).caption


@pytest.mark.parametrize("modality", MODALITIES)
def test_what_is_asked_about_is_what_is_made(modality):
    questions = SyntheticQuestions(modality, 42, seed=5)
    for index in range(len(questions)):
        said = questions._asked(index)[0].caption
        shown = re.sub(r"^one ", "a ", caption(questions[index])).replace("a orange", "an orange")
        said, shown = said.removeprefix("an ").removeprefix("a "), shown.removeprefix("an ").removeprefix("a ")
        assert said in shown


@pytest.mark.parametrize("modality", MODALITIES)
def test_yes_and_no_are_true(modality):
    questions = SyntheticQuestions(modality, 600, turns=3)
    seen = Counter()
    for index in range(len(questions)):
        facts, asked, _ = questions._asked(index)
        for one in asked:
            words, yes = one.words, one.answer == "yes"
            match one.phrases:
                case "yes/no.thing":
                    assert (
                        words["a_thing"]
                        in re.split(r" (?:left of|right of|above|below|moving|standing) ", facts.caption)
                    ) == yes
                case "yes/no.things":
                    assert (words["things"] == facts.caption) == yes
                case "yes/no.pair":
                    assert (words["relation"] == facts.relation) == yes
                case "yes/no.way":
                    assert (words["way"] in facts.motion.split()) == yes
                case "yes/no.moves":
                    assert facts.motion.startswith("moving") == yes
                case "comparison.colour" | "comparison.shape":
                    first, second = facts.things
                    about = one.phrases.split(".")[1]
                    assert (getattr(first, about) == getattr(second, about)) == yes
                case _:
                    continue
            seen[one.phrases, one.answer] += 1
    assert {answer for _, answer in seen} == {"yes", "no"}


@pytest.mark.parametrize("modality", MODALITIES)
def test_answers_are_balanced(modality):
    questions = SyntheticQuestions(modality, 1400)
    answers = defaultdict(Counter)
    for index in range(len(questions)):
        answers[questions.type_of(index)][questions[index].messages[-1].text] += 1
    assert answers.keys() == ASKERS[modality].keys()
    for name, counted in answers.items():
        assert counted.most_common(1)[0][1] <= MOST_FREQUENT.get(name, 0.3) * counted.total() + 1


def test_an_open_question_does_not_tell_its_answer():
    for modality in MODALITIES:
        questions = SyntheticQuestions(modality, 300)
        for index in range(300):
            question, answer = (message.text for message in questions[index].messages)
            choices = re.search(" or ", question)
            assert choices or answer in ("yes", "no") or not re.search(rf"\b{answer}\b", question)
            assert not re.search("[{}]", question)


def test_every_phrase_can_be_filled_and_is_used():
    used, asked = set(), set()
    for modality in MODALITIES:
        questions = SyntheticQuestions(modality, 2000, turns=4)
        for index in range(2000):
            asked |= {one.phrases for one in questions._asked(index)[1]}
    used = {f"{about}.{what}" for about, found in phrases().items() for what in found if about != "photograph"}
    assert asked == used


def test_a_conversation_is_a_function_of_seed_and_index():
    questions = SyntheticQuestions("image", 50, seed=3, size=(40, 48), turns=3)
    again = pickle.loads(pickle.dumps(questions))  # noqa: S301 - as it goes to other processes
    assert [questions[index] for index in range(50)] == [again[index] for index in reversed(range(50))][::-1]
    assert questions[7] != SyntheticQuestions("image", 50, seed=4, size=(40, 48), turns=3)[7]
    assert len({questions[index].media[0].source.index for index in range(50)}) == 50
    pixels = made(questions[7])
    assert pixels.shape == (40, 48, 3)
    assert np.array_equal(pixels, made(again[7]))
    assert made(SyntheticQuestions("video", 9, size=(4, 32, 32))[8]).shape == (4, 32, 32, 3)
    assert isinstance(made(SyntheticQuestions("asset", 9)[8]), Mesh)


def test_turns_ask_different_things_of_media_in_the_first_message():
    questions = SyntheticQuestions("video", 100, turns=3)
    lengths = Counter()
    for index in range(100):
        messages = questions[index].messages
        lengths[len(messages)] += 1
        assert [message.role for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert isinstance(messages[0].content[0], MediaItem)
        assert len(questions[index].media) == 1
        types = [one.phrases.split(".")[0] for one in questions._asked(index)[1]]
        assert len(types) == len(set(types))
    assert set(lengths) == {2, 4, 6}


@pytest.mark.parametrize(
    "given",
    [("sound", 1), ("image", 0), ("image", 1, 0, (3,)), ("video", 1, 0, (0, 16, 16)), ("asset", 1, 0, (3,)),
     ("image", 1, 0, (), 0)],
)  # fmt: skip
def test_what_there_is_not_is_said(given):
    with pytest.raises(AtokenError):
        SyntheticQuestions(*given)
    with pytest.raises(IndexError):
        SyntheticQuestions("image", 3)[3]


@pytest.fixture
def shards(tmp_path):
    labels = [("a hat", "clothing"), ("a royal gala apple", "an apple"), ("garlic", "garlic")]
    write_shard(tmp_path / "photos.tar", [{"a_label": label, "a_group": group} for label, group in labels])
    return tmp_path


def test_photographs_are_asked_about_by_their_labels(shards):
    questions = PhotographQuestions(shards, 300, turns=3)
    truths, photos, no = (
        {0: ("a hat", "clothing"), 1: ("a royal gala apple", "an apple"), 2: ("garlic", "garlic")},
        Counter(),
        0,
    )
    for index in range(300):
        conversation = questions[index]
        photo = int(np.asarray(Image.open(io.BytesIO(conversation.media[0].source)))[0, 0, 0])
        photos[photo] += 1
        for question, answer in zip(conversation.messages[::2], conversation.messages[1::2], strict=True):
            if answer.text in ("yes", "no"):
                no += answer.text == "no"
                assert (truths[photo][0] in question.text) == (answer.text == "yes")
            else:
                assert answer.text in truths[photo]
    assert photos == {0: 100, 1: 100, 2: 100}
    assert 60 < no < 140
    only = PhotographQuestions(shards, 3, types=("label",))
    assert {only[index].messages[1].text for index in range(3)} == {label for label, _ in truths.values()}


def test_photographs_without_labels_are_refused(tmp_path):
    write_shard(tmp_path / "a.tar", [{"label": "hat"}])
    with pytest.raises(AtokenError, match="no a_label"):
        PhotographQuestions(tmp_path, 1)[0]
