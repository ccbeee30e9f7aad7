"""What a Hugging Face folder says about its model: the architecture, and what becomes of the token vectors.

The layout is that of transformers (`config.json`) and of sentence-transformers, which lists what follows the
transformer in `modules.json` and has the kind of pooling in `1_Pooling/config.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shipctl.errors import StageError

POOLINGS = ("mean", "cls", "max")
TOKENIZER_FILES = (
    "added_tokens.json", "chat_template.jinja", "merges.txt", "preprocessor_config.json", "special_tokens_map.json",
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip
"""What turns texts (or images) into the model's inputs; SentencePiece files (`*.model`) as well."""
_FLAGS = {
    "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max",
}  # fmt: skip
"""Pooling as sentence-transformers wrote it before `pooling_mode`."""


@dataclass(frozen=True)
class Pooling:
    """How the token vectors of a text become one vector."""

    mode: str
    """`mean` over the tokens that the mask keeps, `cls` (the first token), or `max`."""
    normalize: bool
    """Whether the vector gets length 1."""


@dataclass(frozen=True)
class HfFolder:
    """A folder whose `config.json` was read."""

    root: Path
    config: dict[str, Any]

    @property
    def architecture(self) -> str:
        """The class that the weights were saved from, such as BertForSequenceClassification; empty if not said."""
        named = self.config.get("architectures") or [""]
        return str(named[0])

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """The tokenizer's files that are there."""
        named = [path for path in map(self.root.joinpath, TOKENIZER_FILES) if path.is_file()]
        return (*named, *sorted(self.root.glob("*.model")))

    def pooling(self) -> Pooling:
        """Return what `modules.json` says.

        :raises StageError: if it says nothing, or something that is not done here
        """
        modules = _json(self.root / "modules.json") if (self.root / "modules.json").is_file() else []
        kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
        if "Pooling" not in kinds:
            message = (
                "the folder says no pooling (modules.json and 1_Pooling/config.json of sentence-transformers), so "
                "there is no output 'sentence_embedding'; declare last_hidden_state, or add the two files"
            )
            raise StageError(message)
        others = [kind for kind in kinds[1:] if kind not in {"Pooling", "Normalize"}]
        if others:
            message = (
                f"modules.json has a {others[0]} after the transformer, which hf-export does not do; write a builder "
                "(models/net.py:build) and use torch-export"
            )
            raise StageError(message)
        path = str(modules[kinds.index("Pooling")].get("path", ""))
        return Pooling(_mode(_json(self.root / path / "config.json"), path), "Normalize" in kinds)


def read_folder(root: Path) -> HfFolder:
    """Read the folder's configuration.

    :raises StageError: if there is none
    """
    config = _json(root / "config.json")
    if not isinstance(config, dict) or "model_type" not in config:
        message = "config.json names no model_type, so it is not one of a Hugging Face model"
        raise StageError(message)
    return HfFolder(root, config)


def _mode(config: Any, where: str) -> str:
    named = config.get("pooling_mode")
    modes = [
        _FLAGS.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on is True
    ]
    modes = ([named] if isinstance(named, str) else list(named)) if named else modes
    if len(modes) != 1 or modes[0] not in POOLINGS:
        shown = " and ".join(map(str, modes)) or "none"
        message = (
            f"{where}/config.json asks for pooling {shown}; hf-export does one of {', '.join(POOLINGS)}: write a "
            "builder (models/net.py:build) and use torch-export"
        )
        raise StageError(message)
    return str(modes[0])


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        message = f"{path.name} cannot be read: {exc}; take the folder anew from where it came from"
        raise StageError(message) from exc
