"""The shapes world's CLIP tokenizer: byte-level BPE in which every known word is one token. Knows words only."""

from __future__ import annotations

import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from zoo.shapes.captions import VOCABULARY

LENGTH = 32
"""Tokens per prompt, the two ends included; longer prompts are cut and reported."""

_START, _END = "<|startoftext|>", "<|endoftext|>"


def _merges() -> list[tuple[str, str]]:
    """Merges that make each known word one token, found by training on the words alone."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False)
    trained.train_from_iterator([" ".join(VOCABULARY)] * 2, trainer)
    found = json.loads(trained.to_str())["model"]["merges"]
    return [(left, right) for left, right in found]


def build() -> CLIPTokenizer:
    """The tokenizer: both ends first, then all bytes, bytes that end a word, and merged words."""
    merges = _merges()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [_START, _END, *letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer: CLIPTokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)
    return tokenizer
