"""CLIP for the shapes world: a byte-level BPE tokenizer in which every known word is one token, and its encoder.

Knows words only.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from tokenizers import pre_tokenizers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from zoo.train.still import WORDS
from zoo.train.text import LENGTH, WIDTH, padded

_START, _END = "<|startoftext|>", "<|endoftext|>"


def _join(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """A word's symbols with every occurrence of a pair made one."""
    joined: list[str] = []
    for symbol in symbols:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined


def _merges() -> list[tuple[str, str]]:
    """Byte-pair merges that make each known word one token.

    The tokenizers library's own trainer breaks ties at random from run to run; here the alphabet breaks them, so that
    the same words always get the same ids.
    """
    words = [[*word[:-1], f"{word[-1]}</w>"] for word in WORDS]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for symbols in words for pair in pairwise(symbols)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = [_join(symbols, best) for symbols in words]
    return merges


def tokenizer() -> CLIPTokenizer:
    """The tokenizer: both ends first, then all bytes, bytes that end a word, and merged words."""
    merges = _merges()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [_START, _END, *letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    words: CLIPTokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)
    return words


class Clip:
    """CLIP's text model: causal, so only positions from a caption's end on know all of it (text.Language)."""

    def __init__(self) -> None:
        self.words = tokenizer()

    def tokens(self, texts: list[str]) -> Tensor:
        """Token ids as StableDiffusionPipeline makes them, [batch, LENGTH] int64."""
        return padded(self.words, texts)

    def build(self) -> CLIPTextModel:
        """The untrained text encoder: 3 layers of width 128."""
        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(self.words),
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=LENGTH,
                bos_token_id=self.words.bos_token_id,
                eos_token_id=self.words.eos_token_id,
                pad_token_id=self.words.pad_token_id,
            )
        )

    def states(self, encoder: nn.Module, ids: Tensor) -> Tensor:
        """The last states, [batch, LENGTH, WIDTH]."""
        states: Tensor = encoder(ids).last_hidden_state
        return states

    def knowing(self, ids: Tensor) -> Tensor:
        """From the caption's end on: padding is the end's token too."""
        known: Tensor = (ids == self.words.eos_token_id).cumsum(1) > 0
        return known
