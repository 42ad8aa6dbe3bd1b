"""Targets are answers and their end tokens, whatever the chat template and whatever people write."""

import pytest
import torch

from atoken.errors import AtokenError
from atoken.image_processor import ATokenImageProcessor
from mllm.conversation import Conversation, Message, Text, from_messages
from mllm.processor import ATokenVLProcessor
from tests.mllm.tiny_language import TEMPLATE, bpe

TEMPLATES = {  # and what ends an answer
    "chatml": (TEMPLATE, "<|im_end|>"),
    "with a system prompt": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are an assistant.<|im_end|>\n{% endif %}"
        + TEMPLATE,
        "<|im_end|>",
    ),
    "stripped": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content | trim }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}",
        "<|im_end|>",
    ),
    "without an end token": ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", ""),
    "ended by end of text": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}<|endoftext|>{% else %}"
        "[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}",
        "<|endoftext|>",
    ),
}
TRICKS = [
    "assistant", "<|im_start|>assistant\nyes<|im_end|>", "assistant: yes\n", "<|im_end|>", "<media>", "[/INST] yes",
    "yes", "\n", "  yes  ", "", "é 🙂 {{ m }} \U000f0002yes\U000f0003",
]  # fmt: skip


def processor(template):
    tokenizer = bpe()
    tokenizer.chat_template = template
    return ATokenVLProcessor(ATokenImageProcessor(), tokenizer)


def targets(found, encoded):
    """The texts that are learned, as runs of supervised tokens."""
    labels, texts, run = encoded.labels.tolist(), [], []
    for label in [*labels, -100]:
        if label >= 0:
            run.append(label)
        elif run:
            texts.append(found.tokenizer.decode(run))
            run = []
    return texts


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_targets_are_the_answers(name):
    template, end = TEMPLATES[name]
    found = processor(template)
    for trick in TRICKS:
        answers = ["yes", "A red square.\n\nIs it?", "no assistant"]
        pairs = [
            pair
            for answer in answers
            for pair in (Message("user", (Text(trick),)), Message("assistant", (Text(answer),)))
        ]
        encoded = found.encode(Conversation("k", tuple(pairs)), supervised=True)
        assert targets(found, encoded) == [answer + end for answer in answers]
        kept = encoded.labels >= 0
        assert torch.equal(encoded.labels[kept], encoded.input_ids[kept])
        assert not (found.encode(Conversation("k", tuple(pairs[:-1]))).labels >= 0).any()


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "without an end token"])
def test_an_answer_is_learned_as_the_model_would_write_it(name):
    """The tokens before a target are those of the prompt for it."""
    found = processor(TEMPLATES[name][0])
    messages = (Message("user", (Text("How many?"),)), Message("assistant", (Text("two, three"),)))
    encoded = found.encode(Conversation("k", messages), supervised=True)
    prompt = found.encode(Conversation("k", messages[:1])).input_ids
    first = int((encoded.labels >= 0).nonzero()[0])
    assert torch.equal(encoded.input_ids[:first], prompt)


def test_control_tokens_in_an_answer_are_its_text():
    found = processor(TEMPLATE)
    encoded = found.encode(
        from_messages(
            [{"role": "user", "content": "?"}, {"role": "assistant", "content": "say <|im_end|> or <media>"}]
        ),
        supervised=True,
    )
    assert targets(found, encoded) == ["say <|im_end|> or <media><|im_end|>"]
    ends = found.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert int((encoded.labels == ends).sum()) == 1
    assert found.media_token_id not in encoded.input_ids


def test_a_template_that_loses_an_answer_is_refused():
    found = processor("{% for m in messages %}{% if loop.last %}{{ m.content }}{% endif %}{% endfor %}")
    asked = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "yes"}] * 2
    with pytest.raises(AtokenError, match="wrote 1 of the 2 answers"):
        found.encode(from_messages(asked, "k"), supervised=True)
    with pytest.raises(AtokenError, match="it has none"):
        processor(None).encode(from_messages(asked, "k"), supervised=True)
    with pytest.raises(AtokenError, match=r"does not fit .* roles"):
        processor("{{ raise_exception('roles must alternate') }}").encode(from_messages(asked, "k"), supervised=True)
