"""A tiny BERT that reads whether a sentence says something good: a Hugging Face folder small enough to be kept here.

    python specs/models/tiny_bert.py

trains a text classifier on sentences made of a few words and writes ``specs/models/tiny-bert``: `config.json`,
`model.safetensors` and the tokenizer. It shows the layout; for a model of use see ``specs/minilm.yaml``.

Needs torch and transformers; takes some seconds.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

FOLDER = Path(__file__).parent / "tiny-bert"
SEED = 20
STEPS = 150
SPECIAL = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
}  # fmt: skip
NOUNS = ("weather", "food", "film", "room", "view", "music", "service", "garden")
GOOD = ("good", "lovely", "great", "pleasant", "bright", "fine")
BAD = ("bad", "awful", "poor", "dreadful", "dull", "dirty")
SAID = ("the {noun} is {word}", "what a {word} {noun}")
DENIED = ("the {noun} was not {word}", "a {noun} that is never {word}")


def sentences() -> tuple[list[str], list[int]]:
    """Return all sentences and whether each says something good (1) or not (0)."""
    texts, labels = [], []
    for template, noun, word in itertools.product(SAID + DENIED, NOUNS, GOOD + BAD):
        texts.append(template.format(noun=noun, word=word))
        labels.append(int((word in GOOD) != (template in DENIED)))
    return texts, labels


def tokenizer(texts: list[str]) -> Any:
    """Return a tokenizer that knows the words of ``texts``."""
    words = sorted({word for text in texts for word in text.split()})
    numbers = {word: number for number, word in enumerate((*SPECIAL.values(), *words))}
    inner = Tokenizer(models.WordLevel(numbers, SPECIAL["unk_token"]))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    settings: dict[str, Any] = {"tokenizer_object": inner, "model_max_length": 32, **SPECIAL}
    kind: Any = transformers.PreTrainedTokenizerFast
    return kind(**settings)


def main() -> None:
    """Train the model and write the folder."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    texts, labels = sentences()
    words = tokenizer(texts)
    sizes: dict[str, Any] = {
        "vocab_size": len(words), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 32, "id2label": {0: "bad", 1: "good"},
        "label2id": {"bad": 0, "good": 1},
    }  # fmt: skip
    model: Any = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
    feed = dict(words(texts, padding=True, return_tensors="pt"))
    wanted = torch.tensor(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(**feed).logits, wanted).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        accuracy = (model(**feed).logits.argmax(1) == wanted).float().mean().item()
    print(f"accuracy on the {len(texts)} sentences: {accuracy:.3f}")
    model.save_pretrained(FOLDER)
    words.save_pretrained(FOLDER)
    print(*(f"{path.name}: {path.stat().st_size} bytes" for path in sorted(FOLDER.iterdir())), sep="\n")


if __name__ == "__main__":
    main()
