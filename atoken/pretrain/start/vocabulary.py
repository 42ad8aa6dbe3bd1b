"""The words of the bundled models' text side, counted in the captions of the generator.

The tokenizer is a WordPiece (the longest known piece first): a word of the captions is one token, any other word is
split into letters and shorter words, so that it can encode every text. Nothing is random.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from atoken.data.synthetic import labelled, procedural
from atoken.text import TextTokenizer, clean

MOST = 512  # entries
UNKNOWN, PADDING = "<unk>", "<pad>"  # numbers 0 and 1: transformers' Siglip2TextConfig pads with 1
LETTERS = string.ascii_lowercase + string.digits
_SIDE, _FRAMES = 24, 8  # pixels, frames: small, because captions do not depend on the size,
_LARGE = 128  # pixels, except for images with text, whose letters are large in large images only


def captions(count: int, seed: int = 0) -> Iterator[str]:
    """The captions of the first ``count`` samples of each series, and the prompts of all classes."""
    yield from (*labelled.FIGURE_PROMPTS, *labelled.SOLID_PROMPTS)
    for index in range(count):
        yield procedural.make_image(seed, index, _LARGE, _LARGE).caption
        yield procedural.make_video(seed, index, _FRAMES, _SIDE, _SIDE).caption
        yield procedural.make_asset(seed, index).caption
        yield labelled.labelled_image(seed, index, _SIDE, _SIDE).caption
        yield labelled.labelled_video(seed, index, 2, _SIDE, _SIDE).caption
        yield labelled.labelled_asset(seed, index).caption
        yield labelled.scene(seed, index, _SIDE, _SIDE).caption


def vocabulary(texts: Iterable[str], length: int, most: int = MOST) -> TextTokenizer:
    """A tokenizer of letters, digits and the most frequent words of texts; ``length``: tokens of its output.

    Words of one frequency are in alphabetical order. It has at most ``most`` entries, but at least the letters.
    """
    pieces = [UNKNOWN, PADDING, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    counts = Counter(word for text in texts for word in clean(text).split())
    words = sorted(counts.keys() - set(pieces), key=lambda word: (-counts[word], word))
    numbers = {piece: number for number, piece in enumerate([*pieces, *words[: max(most - len(pieces), 0)]])}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token=UNKNOWN, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return TextTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PADDING, unk_token=UNKNOWN), length
    )
