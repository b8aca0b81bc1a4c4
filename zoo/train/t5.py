"""T5 for the shapes world: a unigram tokenizer in which every known word is one token, and its encoder.

Knows words only.
"""

from __future__ import annotations

import string
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import T5Config, T5EncoderModel, T5Tokenizer, UMT5Config, UMT5EncoderModel

from zoo.train.text import LENGTH, WIDTH, padded

_SPACE = "\u2581"
_KNOWN, _LETTER = -2.0, -12.0
"""Log-probabilities: a known word always beats its spelling."""


def tokenizer(known: tuple[str, ...]) -> T5Tokenizer:
    """The tokenizer: special tokens, known words in small letters and capitalized, then letters to spell others.

    T5Tokenizer has no lower-casing of its own, and drops one that a tokenizer.json brings.
    """
    words = [f"{_SPACE}{form}" for word in known for form in (word, word.capitalize())]
    letters = [_SPACE, *string.ascii_letters, *string.digits, *".,;:!?-'\"()"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [*special, *((word, _KNOWN) for word in words), *((letter, _LETTER) for letter in letters)]
    built: T5Tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=LENGTH)
    return built


_SIZE: dict[str, Any] = {
    "d_model": WIDTH,
    "d_kv": WIDTH // 4,
    "d_ff": 3 * WIDTH,
    "num_layers": 3,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "is_encoder_decoder": False,
    "use_cache": False,
}


class T5:
    """T5's encoder: it sees a whole caption from every position (text.Language)."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = tokenizer(words)

    def tokens(self, texts: list[str]) -> Tensor:
        """Token ids as diffusers' pipelines make them, [batch, LENGTH] int64."""
        return padded(self.words, texts)

    def build(self) -> T5EncoderModel:
        """The untrained text encoder: 3 layers of width 128, as T5 1.1 has them."""
        return T5EncoderModel(T5Config(vocab_size=len(self.words), **_SIZE))

    def states(self, encoder: nn.Module, ids: Tensor) -> Tensor:
        """The last states, [batch, LENGTH, WIDTH]; padding is masked, where it ends all captions not even computed."""
        known = self.knowing(ids)
        length = int(known.sum(1).max())
        states = encoder(ids[:, :length], attention_mask=known[:, :length].long()).last_hidden_state
        padded: Tensor = functional.pad(states, (0, 0, 0, ids.shape[1] - length))
        return padded

    def knowing(self, ids: Tensor) -> Tensor:
        """All but padding."""
        known: Tensor = ids != self.words.pad_token_id
        return known


class UMT5(T5):
    """The same under UMT5's encoder, in which every layer weighs distances its own way."""

    def build(self) -> UMT5EncoderModel:
        """The untrained text encoder, of T5's size."""
        return UMT5EncoderModel(UMT5Config(vocab_size=len(self.words), **_SIZE))
