"""PyTorch models from source: importing a builder without a trace, loading weights strictly, running by names."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl.signature import Signature
from shipctl.stages.artifacts import TorchModel

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    Array = np.ndarray[Any, np.dtype[Any]]

_SHOWN_KEYS = 5


class TorchSource:
    """A built module with its weights, in evaluation mode, called with named arrays."""

    def __init__(self, module: nn.Module, signature: Signature) -> None:
        """Make ``module.forward`` return its tensors in the signature's order, as a tuple."""
        self.module = module
        self.signature = signature
        names = [
            name
            for name, parameter in inspect.signature(module.forward).parameters.items()
            if parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
        ]
        self.by_name = all(spec.name in names for spec in signature.inputs)
        """Whether the inputs are called what forward's parameters are; else they go by position."""
        self.inputs = sorted(signature.inputs, key=lambda spec: names.index(spec.name) if self.by_name else 0)
        """The inputs in the order in which forward takes them."""
        forward = module.forward

        @functools.wraps(forward)
        def ordered(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
            return _ordered(forward(*args, **kwargs), signature)

        module.forward = ordered

    def arguments(self, feed: Mapping[str, Array]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return ``feed`` as positional and keyword arguments of forward."""
        import torch

        tensors = {spec.name: torch.from_numpy(feed[spec.name].copy()) for spec in self.inputs}
        return ((), tensors) if self.by_name else (tuple(tensors.values()), {})

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs for ``feed`` by the signature's names.

        :raises StageError: if forward raises, or returns other outputs than the signature says
        """
        import torch

        args, kwargs = self.arguments(feed)
        try:
            with torch.inference_mode():
                outputs = self.module(*args, **kwargs)
        except StageError:
            raise
        except Exception as exc:  # a model's own code may raise anything
            shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feed.items())
            message = f"the model's forward fails on {shapes}: {describe(exc)}"
            raise StageError(message) from exc
        return {
            spec.name: tensor.numpy() for spec, tensor in zip(self.signature.outputs, outputs, strict=True)
        }


def _ordered(result: Any, signature: Signature) -> tuple[Tensor, ...]:
    import torch

    names = [spec.name for spec in signature.outputs]
    if isinstance(result, Mapping):
        missing = [name for name in names if name not in result]
        if missing:
            message = (
                f"forward returns {', '.join(map(str, result))}, but no output {missing[0]!r} as declared"
            )
            raise StageError(message)
        tensors = [result[name] for name in names]
    else:
        tensors = list(result) if isinstance(result, tuple | list) else [result]
        if len(tensors) != len(names):
            message = f"forward returns {len(tensors)} outputs, declared are {len(names)}: {', '.join(names)}"
            raise StageError(message)
    for name, tensor in zip(names, tensors, strict=True):
        if not isinstance(tensor, torch.Tensor):
            message = f"forward returns a {type(tensor).__name__} for output {name!r}, not a tensor"
            raise StageError(message)
    return tuple(tensors)


@contextmanager
def torch_source(model: TorchModel, *, seed: int = 0) -> Iterator[TorchSource]:
    """Build ``model`` and load its weights; its modules can be imported only inside.

    :raises StageError: if the builder is missing, fails or returns no module, or the weights do not fit
    """
    import torch

    base = model.root.parent if model.root.is_file() else model.root
    with _importable(model.builder, base) as module:
        name = model.builder.partition(":")[2]
        builder = getattr(module, name, None)
        if not callable(builder):
            there = ", ".join(sorted(key for key, value in vars(module).items() if inspect.isfunction(value)))
            message = f"builder {model.builder}: there is no function {name!r}, only {there or 'none'}"
            raise StageError(message)
        torch.manual_seed(seed)  # a model without a weights file has random ones
        try:
            network = builder()
        except Exception as exc:  # a builder may raise anything
            message = f"builder {model.builder} fails: {describe(exc, base)}"
            raise StageError(message) from exc
        if not isinstance(network, torch.nn.Module):
            message = f"builder {model.builder} returns a {type(network).__name__}, not a torch.nn.Module"
            raise StageError(message)
        if model.weights is not None:
            load_weights(network, base / model.weights, model.weights)
        network.eval().requires_grad_(requires_grad=False)
        yield TorchSource(network, model.signature)


def load_weights(network: nn.Module, path: Path, name: str) -> None:
    """Load the safetensors file at ``path``, called ``name`` in messages, strictly into ``network``.

    A key may be missing where the module ties its tensor to one that is there.

    :raises StageError: naming the keys that are missing, not known, or of another shape
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as exc:
        message = f"weights {name} cannot be read: {exc}"
        raise StageError(message) from exc
    state = network.state_dict()
    loaded = {state[key].data_ptr() for key in tensors.keys() & state.keys() if state[key].numel()}
    faults = {
        "missing": [key for key in state if key not in tensors and state[key].data_ptr() not in loaded],
        "not known": [key for key in tensors if key not in state],
        "of another shape": [
            f"{key} ({list(tensors[key].shape)} in the file, {list(state[key].shape)} in the model)"
            for key in tensors
            if key in state and tensors[key].shape != state[key].shape
        ],
    }
    found = "; ".join(f"{fault}: {_some(keys)}" for fault, keys in faults.items() if keys)
    if found:
        message = f"weights {name} do not fit the model: {found}; save them from the module that the builder returns"
        raise StageError(message)
    network.load_state_dict(tensors, strict=False)


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
    return ", ".join(keys[:_SHOWN_KEYS]) + more


def describe(exc: BaseException, base: Path | None = None) -> str:
    """Return an exception in one line, with the file and line below ``base`` that it comes from."""
    text = f"{type(exc).__name__}: {str(exc).strip().partition(chr(10))[0]}"
    if base is not None:
        for frame in reversed(traceback.extract_tb(exc.__traceback__)):
            path = Path(frame.filename)
            if path.is_relative_to(base):
                return f"{text} ({path.relative_to(base).as_posix()}:{frame.lineno})"
    return text


@contextmanager
def _importable(builder: str, base: Path) -> Iterator[ModuleType]:
    """Import the builder's file; all modules below ``base`` are gone again afterwards.

    Two models may have modules of the same names, and a worker is used for many stages.
    """
    relative = builder.partition(":")[0]
    file = base / relative
    if not file.is_file():
        there = ", ".join(sorted(path.relative_to(base).as_posix() for path in base.rglob("*.py")))
        message = f"builder {builder}: there is no file {relative}, only {there or 'none'}"
        raise StageError(message)
    name, folder = _module_name(file)
    folders = list(dict.fromkeys(map(str, (folder, base))))
    own = {Path(found).stem for place in folders for found in _entries(place)} - sys.stdlib_module_names
    hidden = {key: module for key, module in sys.modules.items() if key.partition(".")[0] in own}
    before, path_before, bytecode_before = set(sys.modules), list(sys.path), sys.dont_write_bytecode
    for key in hidden:
        del sys.modules[key]
    sys.path[:0] = folders
    # the artifact's folder is read-only, and a cache there would be a file more
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        try:
            module = _import_file(name, file)
        except Exception as exc:  # a model's module may raise anything
            message = f"builder {builder} does not import: {describe(exc, base)}"
            raise StageError(message) from exc
        yield module
    finally:
        for key in [key for key, module in sys.modules.items() if key not in before or key in hidden]:
            if _lies_below(sys.modules[key], base):
                del sys.modules[key]
        sys.modules.update(hidden)
        sys.path[:] = path_before
        sys.dont_write_bytecode = bytecode_before
        for place in folders:
            sys.path_importer_cache.pop(place, None)


def _module_name(file: Path) -> tuple[str, Path]:
    """Return the dotted name of ``file`` and the folder that has to be on the path for it."""
    parts, folder = [file.stem], file.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts), folder


def _entries(folder: str) -> list[Path]:
    """Return the modules and packages directly in ``folder``; one without `__init__.py` never shadows another."""
    return [p for p in Path(folder).iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()]


def _import_file(name: str, file: Path) -> ModuleType:
    if "." in name:
        return importlib.import_module(name)
    # by its file, and not in the place of a loaded module that is called like it
    name = f"_shipctl_{name}" if name in sys.modules else name
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        message = f"{file.name} is not a Python file"
        raise ImportError(message)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _lies_below(module: ModuleType, base: Path) -> bool:
    origin = getattr(module, "__file__", None)
    if origin:
        return Path(origin).is_relative_to(base)
    return any(Path(place).is_relative_to(base) for place in getattr(module, "__path__", ()))
