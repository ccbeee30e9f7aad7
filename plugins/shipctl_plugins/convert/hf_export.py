"""Stage `hf-export`: from a Hugging Face folder to an ONNX graph, with the tokenizer beside it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from shipctl.errors import SpecError, StageError
from shipctl.stages.artifacts import Dataset, HuggingFaceModel, OnnxModel, Report
from shipctl.stages.base import Stage, StageInputs, StageOutputs
from shipctl.stages.context import CheckContext, JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._onnx import arrays, graph, parity
from shipctl_plugins._onnx.made import made_from
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins._sources.hf_source import INPUTS, HfSource, hf_source
from shipctl_plugins._sources.source_parity import compare_cases, require
from shipctl_plugins._sources.torch_onnx import EXAMPLE_BATCH, export_graph, save_graph

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


class Options(parity.ExactParityOptions):
    """What stands below ``with:``."""

    opset: int = Field(default=20, ge=1, description="Version of the ONNX operator set.")
    lengths: tuple[int, ...] = Field(
        default=(1, 8, 32),
        min_length=1,
        description="Numbers of tokens in the random inputs, unless `dimensions` says how long the sequence is.",
    )


class Inputs(StageInputs):
    """What the stage takes."""

    model: HuggingFaceModel
    calibration: Dataset | None = None


class Outputs(StageOutputs):
    """What the stage gives."""

    model: OnnxModel
    report: Report


class HfExport(Stage[Options, Inputs, Outputs]):
    """Export a Hugging Face model to ONNX and compare the two; the tokenizer's files stay beside the graph.

    The folder has `config.json`, safetensors and the tokenizer's files. It is opened without network and without
    code of its own. The signature names the library's inputs and outputs::

        inputs:
          - {name: input_ids, dtype: int64, shape: [batch, sequence]}
          - {name: attention_mask, dtype: int64, shape: [batch, sequence]}
        outputs:
          - {name: sentence_embedding, dtype: float32, shape: [batch, 384]}

    `logits` and what else a head gives come from the class in `architectures` of `config.json` (sequence or token
    classification, masked language models, images, …); `last_hidden_state` and `pooler_output` from the model without
    one. `sentence_embedding` is pooled over the tokens, and normalised, as the folder says it to sentence-transformers
    (`modules.json`, `1_Pooling/config.json`).

    Parity is measured in ONNX Runtime on random token ids of several batch sizes and lengths, with padding, and on
    calibration data where there is some.
    """

    api_version = 1
    requires: ClassVar[Mapping[str, str]] = {
        "transformers": "shipctl[huggingface]",
        "torch": "shipctl[huggingface]",
        "onnxscript": "shipctl[huggingface]",
        "safetensors": "shipctl[huggingface]",
        "onnxruntime": "shipctl[cpu]",
    }
    metrics = parity.METRICS
    tools = ("torch", "transformers", "onnxscript", "onnx", "onnxruntime", "safetensors", "numpy")

    def check(self, ctx: CheckContext) -> None:
        """Look at the names of the declared inputs."""
        for source in ctx.inputs.get("model", ()):
            if isinstance(source.artifact, HuggingFaceModel):
                names = [spec.name for spec in source.artifact.signature.inputs]
                unknown = [name for name in names if name not in INPUTS]
                if unknown:
                    known = ", ".join(INPUTS)
                    message = f"model.inputs: hf-export asks no Hugging Face model with {unknown[0]!r}; name {known}"
                    raise SpecError(message)

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Open, export, check against the signature, compare."""
        options, signature = self.options, inputs.model.signature
        folder = ctx.workdir / "model"
        with hf_source(inputs.model, threads=ctx.threads) as source:
            # an export takes its time: what may fail without it comes first
            tokenizer = _tokenizer_files(source)
            example = source.valid_inputs(
                arrays.fixed_batch(signature) or EXAMPLE_BATCH, ctx.seed, options.dimensions
            )
            for feed in (example, self._longest(source, ctx)):
                require(graph.array_differences(source.run(feed), feed, signature), "the model")
            exported = export_graph(source, example, options.opset, folder, ctx)
            require(graph.graph_differences(exported, signature), "the exported graph")
            graph.declare(exported, signature)
            graph.strip_notes(exported)
            save_graph(exported, folder)
            measured = compare_cases(
                source, folder / graph.MODEL_FILE, signature, self._cases(source, inputs, ctx), ctx,
                parity.Parity(),
            )  # fmt: skip
        for path in tokenizer:
            shutil.copyfile(path, folder / path.name)  # without its mode: what is read may be read-only
        model = made_from(inputs.model, folder, options.opset)
        notes = {
            "nodes": graph.node_count(exported), "architecture": source.folder.architecture,
            "tokenizer": [path.name for path in tokenizer],
        }  # fmt: skip
        report = write_report(
            ctx.workdir, subject=model.digest, title=f"Export to ONNX, opset {options.opset}",
            metrics=measured.metrics(), details=measured.details() | notes,
        )  # fmt: skip
        return Outputs(model=model, report=report)

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Compare parity with its bounds."""
        return parity.judge_parity(outputs.report, self.options)

    def _sizes(self, source: HfSource, length: int) -> dict[str, int]:
        """Return the sizes of varying dimensions, with so many tokens unless `dimensions` says how many."""
        tokens = {source.sequence: length} if source.sequence else {}
        return tokens | dict(self.options.dimensions)

    def _longest(self, source: HfSource, ctx: StageContext) -> dict[str, Array]:
        """Return a sample of the most tokens."""
        sizes = self._sizes(source, max(self.options.lengths))
        return source.valid_inputs(arrays.fixed_batch(source.signature) or 1, ctx.seed, sizes)

    def _cases(
        self, source: HfSource, inputs: Inputs, ctx: StageContext
    ) -> Iterator[tuple[str, dict[str, Array]]]:
        options, signature = self.options, source.signature
        varies = source.sequence and source.sequence not in options.dimensions
        for batch in arrays.batch_sizes(signature, options.batches):
            for length in options.lengths if varies else options.lengths[:1]:
                feed = source.valid_inputs(batch, ctx.seed + 1, self._sizes(source, length))
                shown = f", {length} tokens" if varies else ""
                yield f"random inputs, batch {batch}{shown}", feed
        if inputs.calibration is not None:
            yield from arrays.sample_batches(
                inputs.calibration, signature, options.samples, max(options.batches)
            )


def _tokenizer_files(source: HfSource) -> Sequence[Path]:
    """Return the tokenizer's files, which a model of tokens needs."""
    files = source.folder.tokenizer_files
    if not files and "input_ids" in {spec.name for spec in source.inputs}:
        message = (
            "the folder has no tokenizer (tokenizer.json, vocab.txt, *.model, …), so nobody could ask the model; "
            "save it there with tokenizer.save_pretrained"
        )
        raise StageError(message)
    return files
