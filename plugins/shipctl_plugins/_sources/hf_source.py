"""Hugging Face models from source: a local folder, opened without network and without code of its own."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl.signature import Signature
from shipctl.stages.artifacts import HuggingFaceModel
from shipctl_plugins._onnx import arrays
from shipctl_plugins._sources.hf_folder import HfFolder, Pooling, read_folder
from shipctl_plugins._sources.importing import describe
from shipctl_plugins._sources.torch_source import TorchSource

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    Array = np.ndarray[Any, np.dtype[Any]]

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "pixel_values")
"""The inputs that a signature may name: those of the library's forward methods."""
POOLED = "sentence_embedding"
"""The output that pooling gives, as sentence-transformers calls it."""
BASE_OUTPUTS = frozenset({"last_hidden_state", "pooler_output", POOLED})
"""What a model has without a head for a task."""


class HfSource(TorchSource):
    """An open model, and inputs that it takes."""

    def __init__(self, module: nn.Module, signature: Signature, folder: HfFolder) -> None:
        super().__init__(module, signature)
        self.folder = folder

    @property
    def sequence(self) -> str | None:
        """The name of the dimension of tokens, where it varies."""
        spec = next((spec for spec in self.inputs if spec.name == "input_ids"), None)
        size = spec.shape[1] if spec is not None and len(spec.shape) > 1 else None
        return size if isinstance(size, str) else None

    def valid_inputs(
        self, batch: int, seed: int, dimensions: Mapping[str, int] | None = None
    ) -> dict[str, Array]:
        """Return random inputs: ids below the vocabulary's size, padded behind, and masks that say so.

        Lengths are random from 1 to the whole; padding has the pad token's id. Pixels are standard normal.
        """
        import numpy as np

        feed = arrays.random_inputs(self.signature, batch, seed, dimensions)
        if "input_ids" not in feed:
            return feed
        rng = np.random.default_rng([seed, batch, *feed["input_ids"].shape])
        config = self.folder.config
        shape = feed["input_ids"].shape
        kept = np.arange(shape[1]) < rng.integers(1, shape[1] + 1, (shape[0], 1))
        kept[0] = True
        ids = rng.integers(0, int(config.get("vocab_size", 2)), shape)
        values = {
            "input_ids": np.where(kept, ids, config.get("pad_token_id") or 0),
            "attention_mask": kept,
            "token_type_ids": np.where(
                kept, rng.integers(0, int(config.get("type_vocab_size") or 1), shape), 0
            ),
            "position_ids": np.broadcast_to(np.arange(shape[1]), shape),
        }
        return {
            name: values[name].astype(array.dtype) if name in values else array
            for name, array in feed.items()
        }


@contextmanager
def hf_source(model: HuggingFaceModel, *, threads: int) -> Iterator[HfSource]:
    """Open a Hugging Face folder as the signature asks for it.

    With outputs `last_hidden_state`, `pooler_output` or `sentence_embedding`, the model without a head; else, such as
    for `logits`, the class that `config.json` names under `architectures`. `sentence_embedding` is pooled (and
    normalised) as `modules.json` says.

    :raises StageError: if the folder cannot be read or lacks weights that the outputs need, or the model takes other
        inputs
    """
    import torch

    torch.set_num_threads(threads)
    folder = read_folder(model.root)
    signature = model.signature
    wanted = {spec.name for spec in signature.outputs}
    pooling = folder.pooling() if POOLED in wanted else None
    with _offline():
        network = _load(folder, base=wanted <= BASE_OUTPUTS, wanted=wanted, trusted=model.trusted)
        _require_inputs(network, signature)
        yield HfSource(_wrapped(network, pooling), signature, folder)


def _load(folder: HfFolder, *, base: bool, wanted: set[str], trusted: bool) -> nn.Module:
    import torch
    import transformers

    kind = transformers.AutoModel if base else _architecture(folder)
    safe = any(folder.root.glob("*.safetensors"))
    if not safe and not trusted:
        message = (
            "the folder has no .safetensors, and its weights are a pickle, which can run any code; save them with "
            "save_pretrained, or write `trust_pickle: true` below `model:` if you trust who made it"
        )
        raise StageError(message)
    try:
        network, info = kind.from_pretrained(
            folder.root, local_files_only=True, trust_remote_code=False, use_safetensors=safe, dtype=torch.float32,
            attn_implementation="eager", output_loading_info=True,
        )  # fmt: skip
    except Exception as exc:  # the library raises whatever it stumbles on
        message = f"transformers {transformers.__version__} does not load the folder: {describe(exc)}"
        raise StageError(message) from exc
    # a checkpoint of a model with a head has no pooler, which then is not asked
    unused = () if "pooler_output" in wanted else ("pooler.",)
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(unused))
    if missing:
        message = (
            f"the weights of {type(network).__name__} lack {missing[0]} ({len(missing)} in all), so its output would "
            "be random; declare an output that they have, such as last_hidden_state"
        )
        raise StageError(message)
    network.config.use_cache = False
    network.eval().requires_grad_(requires_grad=False)
    loaded: nn.Module = network
    return loaded


def _architecture(folder: HfFolder) -> Any:
    import transformers

    name = folder.architecture
    kind = getattr(transformers, name, None) if name.isidentifier() else None
    if not (inspect.isclass(kind) and issubclass(kind, transformers.PreTrainedModel)):
        message = (
            f"config.json names {name or 'nothing'!r} under architectures, which transformers "
            f"{transformers.__version__} does not have; write a builder (models/net.py:build) and use torch-export"
        )
        raise StageError(message)
    return kind


def _require_inputs(network: nn.Module, signature: Signature) -> None:
    taken = [name for name in inspect.signature(network.forward).parameters if name in INPUTS]
    unknown = [spec.name for spec in signature.inputs if spec.name not in taken]
    if unknown:
        kind, there = type(network).__name__, ", ".join(taken)
        message = f"{kind} takes no input {unknown[0]!r}, only {there}; correct the signature"
        raise StageError(message)


def _wrapped(network: nn.Module, pooling: Pooling | None) -> nn.Module:
    """Return a module that takes tensors by name and returns a mapping of tensors."""
    import torch

    class Outputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(
            self,
            input_ids: Tensor | None = None,
            attention_mask: Tensor | None = None,
            token_type_ids: Tensor | None = None,
            position_ids: Tensor | None = None,
            pixel_values: Tensor | None = None,
        ) -> dict[str, Tensor]:
            given = {
                "input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids,
                "position_ids": position_ids, "pixel_values": pixel_values,
            }  # fmt: skip
            found = self.network(**{name: x for name, x in given.items() if x is not None}, return_dict=True)
            outputs = {name: x for name, x in found.items() if isinstance(x, torch.Tensor)}
            if pooling is not None:
                outputs[POOLED] = _pooled(outputs["last_hidden_state"], attention_mask, pooling)
            return outputs

    return Outputs().eval()


def _pooled(tokens: Tensor, mask: Tensor | None, pooling: Pooling) -> Tensor:
    """Return ``[batch, width]`` of ``[batch, sequence, width]``, as sentence-transformers does it."""
    import torch

    kept = torch.ones_like(tokens[..., :1]) if mask is None else mask[..., None].to(tokens.dtype)
    if pooling.mode == "cls":
        vectors = tokens[:, 0]
    elif pooling.mode == "max":
        vectors = tokens.masked_fill(kept == 0, -1e9).amax(1)
    else:
        vectors = (tokens * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(vectors, dim=1) if pooling.normalize else vectors


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the library off the network, and its bars and notes off the terminal."""
    before = {name: os.environ.get(name) for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY")}
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported; and nothing here names one
    import transformers

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
