"""PyTorch models from source, in whatever format: opened without a trace, run with named arrays."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl.signature import Signature
from shipctl.stages.artifacts import TorchModel
from shipctl_plugins._sources.importing import describe, imported_function
from shipctl_plugins._sources.torch_files import open_pickle, open_program, open_script
from shipctl_plugins._sources.torch_weights import load_weights

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    Array = np.ndarray[Any, np.dtype[Any]]


class TorchSource:
    """A module with its weights, in evaluation mode, called with named arrays."""

    def __init__(
        self, module: nn.Module, signature: Signature, *, parameters: Sequence[str] | None = None
    ) -> None:
        """Take a module; ``parameters`` names those of a forward that takes all by position, as `*tensors`."""
        import torch

        self.module = module
        self.signature = signature
        self.script = isinstance(module, torch.jit.ScriptModule)
        """Whether it is TorchScript, which Python cannot trace."""
        names = _names(module) if parameters is None else list(parameters)
        self.by_name = all(spec.name in names for spec in signature.inputs)
        """Whether the inputs are called what forward's parameters are; else they go by position."""
        self.by_keyword = self.by_name and parameters is None and not self.script
        """Whether forward is called with them by keyword."""
        self.inputs = sorted(signature.inputs, key=lambda spec: names.index(spec.name) if self.by_name else 0)
        """The inputs in the order in which forward takes them."""
        # a ScriptModule takes no attributes that are functions
        self._call = ordered(module, signature) if self.script else module
        if not self.script:
            module.forward = ordered(module.forward, signature)

    def arguments(self, feed: Mapping[str, Array]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return ``feed`` as positional and keyword arguments of forward."""
        import torch

        tensors = {spec.name: torch.from_numpy(feed[spec.name].copy()) for spec in self.inputs}
        return ((), tensors) if self.by_keyword else (tuple(tensors.values()), {})

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs for ``feed`` by the signature's names.

        :raises StageError: if forward raises, or returns other outputs than the signature says
        """
        import torch

        args, kwargs = self.arguments(feed)
        try:
            with torch.inference_mode():
                outputs = self._call(*args, **kwargs)
        except StageError:
            raise
        except Exception as exc:  # a model's own code may raise anything
            shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feed.items())
            message = f"the model's forward fails on {shapes}: {_cause(exc)}"
            raise StageError(message) from exc
        return {
            spec.name: tensor.numpy() for spec, tensor in zip(self.signature.outputs, outputs, strict=True)
        }


def plain_module(graph: nn.Module, keywords: Sequence[str] = ()) -> nn.Module:
    """Return a module around a graph module, with a forward of its own, which takes all tensors by position.

    The last ones go on by the names of ``keywords``. torch.export goes by the original forward of a graph module,
    whatever was put in its place since.
    """
    import torch

    for (
        part
    ) in graph.modules():  # eval() may be refused; the flag means nothing to a graph, but the exporter warns
        part.training = False

    class Program(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.program = graph

        def forward(self, *tensors: Tensor) -> Any:
            first = len(tensors) - len(keywords)
            return self.program(*tensors[:first], **dict(zip(keywords, tensors[first:], strict=True)))

    wrapped = Program().requires_grad_(requires_grad=False)
    wrapped.training = False
    return wrapped


def ordered(forward: Callable[..., Any], signature: Signature) -> Callable[..., tuple[Tensor, ...]]:
    """Return ``forward``, but with its tensors in the signature's order, as a tuple."""

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return _ordered(forward(*args, **kwargs), signature)

    return call


def _names(module: nn.Module) -> list[str]:
    """Return the names of forward's parameters, in order."""
    import torch

    method: Any = module.forward
    if isinstance(module, torch.jit.ScriptModule):
        return [argument.name for argument in method.schema.arguments[1:]]
    return [
        name
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
    ]


def _cause(exc: Exception) -> str:
    """Return what went wrong in one line; TorchScript says it last, after a trace of its own."""
    lines = [line for line in str(exc).strip().splitlines() if line.strip()]
    if len(lines) > 1 and "TorchScript interpreter" in lines[0]:
        return lines[-1].strip()
    return describe(exc)


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
    """Open a PyTorch model in any format; what a builder imports can be imported only inside.

    :raises StageError: if the builder is missing, fails or returns no module, the weights do not fit, or a file
        cannot be read or holds code that was not trusted
    """
    if model.format == "builder":
        with _built(model, seed) as source:
            yield source
    elif model.format == "exported-program":
        yield _from_program(model)
    else:
        module = open_script(model) if model.format == "torchscript" else open_pickle(model)
        yield _opened(module, model.signature)


@contextmanager
def _built(model: TorchModel, seed: int) -> Iterator[TorchSource]:
    import torch

    base = model.root.parent if model.root.is_file() else model.root
    with imported_function(model.builder, model.root, "builder") as builder:
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
            load_weights(network, base / model.weights, model.weights, trusted=model.trusted)
        yield _opened(network, model.signature)


def _from_program(model: TorchModel) -> TorchSource:
    program = open_program(model)
    module = program.module(check_guards=False)
    positional, by_keyword = program.call_spec.in_spec.children()
    keywords = tuple(by_keyword.context or ())
    names = list(inspect.signature(module.forward).parameters)[: positional.num_children] + list(keywords)
    return TorchSource(plain_module(module, keywords), model.signature, parameters=names)


def _opened(module: nn.Module, signature: Signature) -> TorchSource:
    import torch

    if isinstance(module, torch.fx.GraphModule):
        return TorchSource(plain_module(module), signature, parameters=_names(module))
    return TorchSource(_frozen(module), signature)


def _frozen(module: nn.Module) -> nn.Module:
    """Return ``module`` in evaluation mode, without gradients."""
    module.eval()
    for parameter in module.parameters():  # a ScriptModule has no requires_grad_
        parameter.requires_grad = False
    return module
