"""The shapes world's CLIP tokenizer: byte-level BPE in which every known word is one token. Knows words only."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from zoo.shapes.captions import VOCABULARY

LENGTH = 32
"""Tokens per prompt, the two ends included; longer prompts are cut and reported."""

WORDS = tuple(sorted({*VOCABULARY, "and", "with", "in", "is", "there", "next", "it", "its"}))
"""What is one token each: the captions' words, and a few that prompts hold although no caption does."""

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


def build() -> CLIPTokenizer:
    """The tokenizer: both ends first, then all bytes, bytes that end a word, and merged words."""
    merges = _merges()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [_START, _END, *letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer: CLIPTokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)
    return tokenizer
