"""Sentence pairs of `minilm-pairs.csv`, tokenised by the model's own tokenizer.

Each function returns `input_ids`, `attention_mask` and `token_type_ids`, int64 ``[sentences, tokens]``, padded to the
longest sentence. Sentences 2i and 2i + 1 are a pair.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

HERE = Path(__file__).parent
TOKENIZER = HERE.parent / "models" / "minilm" / "tokenizer.json"
LONGEST = 256
"""Tokens; more are cut off, as `sentence_bert_config.json` says it."""


def evaluation() -> dict[str, np.ndarray]:
    """Return all pairs, with the grade of each pair at both of its sentences: `label`, float32 ``[sentences]``."""
    pairs = read_pairs()
    texts = [text for pair in pairs for text in (pair["first"], pair["second"])]
    grades = np.array([float(pair["grade"]) for pair in pairs], np.float32)
    return tokens(texts) | {"label": grades.repeat(2)}


def calibration() -> dict[str, np.ndarray]:
    """Return each sentence once, without labels."""
    texts = {text: None for pair in read_pairs() for text in (pair["first"], pair["second"])}
    return tokens(list(texts))


def read_pairs() -> list[dict[str, str]]:
    """Return the rows of the file: group, grade (5 means the same, 0 has nothing to do with it), first, second."""
    with (HERE / "minilm-pairs.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def tokens(texts: list[str]) -> dict[str, np.ndarray]:
    """Return the model's inputs for ``texts``."""
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding()
    found = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([text.ids for text in found], np.int64),
        "attention_mask": np.array([text.attention_mask for text in found], np.int64),
        "token_type_ids": np.array([text.type_ids for text in found], np.int64),
    }
