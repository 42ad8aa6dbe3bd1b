"""The words of the bundled models' text side, counted in the captions that they are trained on.

The tokenizer is a WordPiece (the longest known piece first): a frequent word of the captions is one token, any other
word is split into letters and shorter words, so that it can encode every text. Nothing is random.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from atoken.data.sources import Source
from atoken.data.synthetic.series import MAKERS
from atoken.errors import AtokenError, MediaError
from atoken.pretrain.data_file import Data
from atoken.pretrain.datasets import source_of
from atoken.pretrain.stages import Stage
from atoken.text import TextTokenizer, clean

UNKNOWN, PADDING = "<unk>", "<pad>"  # numbers 0 and 1: transformers' Siglip2TextConfig pads with 1
LETTERS = string.ascii_lowercase + string.digits
READ = 2000  # samples of a source that are read, evenly over all of it
_SIZES = {"image": (24, 24), "video": (8, 24, 24), "asset": ()}  # small, because captions do not depend on the size,
_LARGE = (128, 128)  # except those of images with text, whose letters are large in large images only


def captions(data: Data, stage: Stage, count: int) -> Iterator[str]:
    """The captions of all sources that a task of the stage reads captions from, be it in use or not.

    A text side is trained in a later stage than the one that begins with it; a stage of the curriculum has the tasks of
    all of them. ``count``: samples of each series of the generator; ``procedural`` has all of its series.
    """
    if data.file == "procedural":
        for modality, makers in MAKERS.items():
            for series in makers:
                yield from _of_series(modality, series, count)
        return
    for name, task in stage.tasks.items():
        if task.texts:
            with suppress(MediaError):  # where the task is in use, it has been said already
                for origin in data.origins(name, task.modality)[1].values():
                    if origin.procedural:
                        yield from _of_series(task.modality, origin.procedural, count)
                    else:
                        yield from _of_source(source_of(origin, task))


def _of_series(modality: str, series: str, count: int) -> Iterator[str]:
    size = _LARGE if (modality, series) == ("image", "mixed") else _SIZES[modality]
    return (MAKERS[modality][series](0, index, *size).caption for index in range(count))


def _of_source(source: Source) -> Iterator[str]:
    for index in range(0, len(source), -(-len(source) // READ)):
        with suppress(AtokenError):  # a broken sample
            yield from source[index].captions


def vocabulary(texts: Iterable[str], length: int, most: int) -> TextTokenizer:
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
