"""Packed micro-batches of conversations for the training package: a function of a mixture, a seed and a number.

Conversations stand one after another in one row, and none sees another. So a run resumes at any step, with any number
of ranks that divides the micro-batches of a step, and every epoch has each conversation once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from atoken.data.mixing import ATTEMPTS, Broken, hashed
from atoken.data.sources.sample import quiet
from atoken.errors import AtokenError, MissingExtraError
from atoken.store.order import PackedOrder, rounded
from atoken.summary import Summary
from mllm.conversation import Conversation
from mllm.data.features import FeatureFolder
from mllm.data.lengths import Lengths
from mllm.data.mixture import Mixture
from mllm.inputs import MediaInputs
from mllm.processor import ATokenVLProcessor, Encoded
from mllm.supervision import IGNORED


@dataclass(frozen=True, repr=False)
class ConversationBatch(Summary):
    """One micro-batch: a row of packed conversations.

    input_ids, labels, position_ids: (1, L) int64; labels are -100 but for answers, positions start at 0 in each
    conversation. lengths: tokens of each. media: in the order of their tokens. keys: of the conversations.
    mean_supervised: how many targets a micro-batch of its step has in the mean, over all ranks; the mean over
    micro-batches of sums that are divided by it is the mean over targets.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    lengths: tuple[int, ...]
    media: tuple[MediaInputs, ...]
    keys: tuple[str, ...]
    mean_supervised: float
    noise: int = 0
    task: str = "conversations"
    broken: tuple[Broken, ...] = ()

    def __len__(self) -> int:
        return self.input_ids.shape[1]

    @property
    def samples(self) -> int:
        """How many conversations are in it."""
        return len(self.lengths)

    @property
    def supervised(self) -> int:
        """How many tokens are targets."""
        return int((self.labels != IGNORED).sum())

    @property
    def attention_mask(self) -> Tensor:
        """(1, 1, L, L) bool: each token sees those before it, and itself, in its own conversation."""
        device = self.input_ids.device
        samples = torch.arange(self.samples, device=device).repeat_interleave(torch.tensor(self.lengths, device=device))
        return (samples[:, None] == samples).tril()[None, None]

    def to(self, device: torch.device | str) -> ConversationBatch:
        """The same batch on another device."""
        names = ("input_ids", "labels", "position_ids")
        moved = {name: getattr(self, name).to(device) for name in names}
        return replace(self, **moved, media=tuple(one.to(device) for one in self.media))


def packed(
    encoded: list[Encoded],
    keys: list[str],
    mean_supervised: float | None = None,
    noise: int = 0,
    broken: tuple[Broken, ...] = (),
) -> ConversationBatch:
    """A micro-batch of encoded conversations. mean_supervised: None for one that is a step of its own."""
    lengths = tuple(len(one.input_ids) for one in encoded)
    labels = torch.cat([one.labels for one in encoded])
    labels[[*accumulate(lengths[:-1], initial=0)]] = IGNORED  # the token before is of another conversation
    return ConversationBatch(
        torch.cat([one.input_ids for one in encoded])[None], labels[None],
        torch.cat([torch.arange(length) for length in lengths])[None], lengths,
        tuple(medium for one in encoded for medium in one.media), tuple(keys),
        int((labels != IGNORED).sum()) if mean_supervised is None else mean_supervised, noise, broken=broken,
    )  # fmt: skip


class _Order(NamedTuple):
    """Numbers of conversations by length, and how they are drawn."""

    numbers: np.ndarray
    lengths: np.ndarray
    order: PackedOrder


@dataclass(frozen=True)
class ConversationBatches:
    """A source of micro-batches of at most ``tokens`` tokens; a key is the number of the micro-batch.

    lengths: of the conversations (``measure``, with the same limit). micro_batches: of a step, over all ranks.
    features: where the tower's features of media are kept, which are read in place of pixels. In place of a
    conversation that cannot be loaded stands another one that is no longer. Raises: AtokenError.
    """

    mixture: Mixture
    processor: ATokenVLProcessor
    lengths: Lengths
    tokens: int
    seed: int = 0
    micro_batches: int = 1
    features: FeatureFolder | None = None

    def __post_init__(self) -> None:
        if min(self.tokens, self.micro_batches) < 1:
            raise AtokenError("A micro-batch needs at least 1 token, and a step 1 micro-batch.")
        longest = int(self.lengths.tokens.max(initial=0))
        if not 0 < longest <= self.tokens:
            raise AtokenError(f"The longest conversation has {longest:,} tokens; the budget is {self.tokens:,}.")

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def steps_per_epoch(self) -> float:
        """Steps until each conversation came once."""
        return self._order.order.epoch / self.micro_batches

    def keys(self, step: int) -> list[int]:
        """The micro-batches of a step."""
        return list(range(step * self.micro_batches, (step + 1) * self.micro_batches))

    def batch(self, key: int) -> ConversationBatch:
        """The micro-batch of a number. Raises: AtokenError (too many conversations in a row are broken)."""
        encoded, keys, broken = [], [], []
        for row, epoch in self._order.order.drawn(key):
            for attempt, number in enumerate(self._candidates(row, epoch)):
                name = f"conversation {number}"
                try:
                    conversation = self.mixture[number]
                    name = conversation.key
                    encoded.append(self._encoded(conversation, int(self._order.lengths[row])))
                    keys.append(name)
                    break
                except MissingExtraError:
                    raise
                except AtokenError as error:
                    broken.append(Broken(number, self.mixture.name_of(number), name, str(error)))
                    if attempt == ATTEMPTS - 1:
                        raise AtokenError(
                            f"{ATTEMPTS} conversations in a row are broken. The last one: {error}"
                        ) from error
        return packed(encoded, keys, self._mean_supervised(key), hashed(self.seed, key), tuple(broken))

    def _mean_supervised(self, key: int) -> float:
        """By the conversations that were drawn: what stands in place of broken ones is not looked at."""
        numbers, _, order = self._order
        rows = [row for one in self.keys(key // self.micro_batches) for row, _ in order.drawn(one)]
        return int(self.lengths.supervised[numbers[rows]].sum()) / self.micro_batches

    def _candidates(self, row: int, epoch: int) -> Iterator[int]:
        """The number of the conversation of a row, then those of any rows that are no longer."""
        numbers, lengths, _ = self._order
        yield int(numbers[row])
        shorter = int(np.searchsorted(lengths, lengths[row], side="right"))
        for attempt in range(1, ATTEMPTS):
            yield int(numbers[hashed(self.seed, row, epoch, attempt) % shorter])

    def _encoded(self, conversation: Conversation, most: int) -> Encoded:
        with quiet():
            if self.features:
                conversation = self.features.with_features(conversation, self.processor)
            found = self.processor.encode(conversation, supervised=True)
        if len(found.input_ids) > most:
            raise AtokenError(f"{conversation.key} has {len(found.input_ids):,} tokens, and had {most:,} before.")
        return found

    @cached_property
    def _order(self) -> _Order:
        nominal = np.array([rounded(int(tokens), self.tokens) for tokens in self.lengths.tokens])
        numbers = np.argsort(nominal, kind="stable")
        numbers = numbers[nominal[numbers] > 0]
        lengths = nominal[numbers]
        firsts = np.flatnonzero(np.diff(lengths, prepend=-1, append=-1))
        return _Order(numbers, lengths, PackedOrder(firsts, lengths[firsts[:-1]], self.tokens, self.seed))
