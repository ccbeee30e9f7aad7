"""Stage `hf-export`, on tiny models of several architectures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest

from shipctl.errors import SpecError, StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import Artifact, Dataset, HuggingFaceModel
from shipctl.stages.context import CheckContext, JudgeContext, Upstream
from shipctl.stages.verdicts import Outcome
from shipctl.testing.conformance import StageConformance
from shipctl.testing.samples import sealed
from shipctl_plugins._onnx import graph
from shipctl_plugins._sources.hf_source import hf_source
from shipctl_plugins._sources.opening import open_source
from shipctl_plugins.convert.hf_export import HfExport, Inputs, Options, Outputs
from support_lazy import lazy

if TYPE_CHECKING:
    import torch
    import transformers
else:
    torch = lazy("torch", reason="PyTorch is not installed")
    transformers = lazy("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.torch

TINY = Path(__file__).parents[3] / "specs" / "models" / "tiny-bert"
IDS, MASK, TYPES = (
    TensorSpec(name=name, dtype="int64", shape=("batch", "sequence"))
    for name in ("input_ids", "attention_mask", "token_type_ids")
)
LOGITS = TensorSpec(name="logits", dtype="float32", shape=("batch", 2))
VECTOR = TensorSpec(name="sentence_embedding", dtype="float32", shape=("batch", 32))
SIZES: dict[str, Any] = {
    "vocab_size": 33, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 40,
}  # fmt: skip
# layers take long to export: what is about the inputs, the embeddings or the head goes without
WITHOUT_LAYERS = SIZES | {"num_hidden_layers": 0}


class TestConformance(StageConformance):
    stage = "hf-export"

    def inputs(self, tmp_path: Path) -> Mapping[str, Artifact | list[Artifact] | None]:
        folder = save(
            tmp_path / "model", "BertForSequenceClassification", transformers.BertConfig(**WITHOUT_LAYERS)
        )
        return {"model": at(folder, (IDS, MASK), LOGITS), "calibration": None}


def signature(inputs: Any, *outputs: TensorSpec) -> Signature:
    return Signature(inputs=tuple(inputs), outputs=outputs)


def at(folder: Path, inputs: Any, *outputs: TensorSpec, **fields: Any) -> HuggingFaceModel:
    return sealed(HuggingFaceModel.at(folder, signature=signature(inputs, *outputs), **fields))


def tiny(tmp_path: Path) -> HuggingFaceModel:
    """The tiny classifier of the specs, in a folder of its own."""
    shutil.copytree(TINY, tmp_path / "tiny")
    return at(tmp_path / "tiny", (IDS, MASK), LOGITS)


def save(folder: Path, kind: str, config: Any) -> Path:
    """Save an untrained model of the library's class ``kind``, with the tiny tokenizer."""
    torch.manual_seed(1)
    network = getattr(transformers, kind)(config).eval()
    for parameter in network.parameters():
        parameter.data.normal_(std=0.3)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    network.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY / name, folder / name)
    return folder


def sentence_model(folder: Path, pooling: Mapping[str, Any] | None, *more: str) -> Path:
    """Save a model as sentence-transformers lays it out."""
    save(folder, "BertModel", transformers.BertConfig(**WITHOUT_LAYERS))
    kinds = ["Transformer", *(["Pooling"] if pooling else []), *more]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    if pooling:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def export(model: HuggingFaceModel, context: Any, **options: Any) -> Outputs:
    stage = HfExport(Options(**{"batches": (1, 3), "lengths": (1, 7), **options}))
    outputs = stage.run(Inputs(model=model), context())
    assert {verdict.outcome for verdict in stage.judge(outputs, JudgeContext())} == {Outcome.PASS}
    return outputs


def ask(outputs: Outputs, **feed: Any) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(outputs.model.path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[HuggingFaceModel, Outputs, list[str]]:
    """The tiny classifier, exported once."""
    from shipctl.stages.context import StageContext

    said: list[str] = []
    folder = tmp_path_factory.mktemp("tiny")
    model = tiny(folder)
    ones = np.ones((20, 4), np.int64)
    np.savez(folder / "data.npz", allow_pickle=False, input_ids=ones, attention_mask=ones)
    data = sealed(Dataset.at(folder / "data.npz", role="calibration"))
    ctx = StageContext(workdir=tmp_path_factory.mktemp("export"), log=said.append)
    outputs = HfExport(Options()).run(Inputs(model=model, calibration=data), ctx)
    return model, outputs, said


def test_classifier_answers_texts_like_the_library(exported: Any) -> None:
    tokens = transformers.AutoTokenizer.from_pretrained(TINY, local_files_only=True)(
        ["the weather is lovely", "a room that is never fine"], padding=True, return_tensors="np"
    )
    feed = {name: tokens[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    logits = ask(exported[1], **feed)["logits"]
    assert logits.argmax(1).tolist() == [1, 0]
    network = transformers.AutoModelForSequenceClassification.from_pretrained(
        TINY, local_files_only=True
    ).eval()
    with torch.inference_mode():
        wanted = network(**{name: torch.from_numpy(array) for name, array in feed.items()}).logits
    np.testing.assert_allclose(logits, wanted.numpy(), atol=1e-4)


def test_parity_is_measured_on_valid_ids_of_several_lengths(exported: Any) -> None:
    outputs = exported[1]
    cases = [row["case"] for row in outputs.report.details["parity"]]
    assert cases[:4] == [
        "random inputs, batch 1, 1 tokens",
        "random inputs, batch 1, 8 tokens",
        "random inputs, batch 1, 32 tokens",
        "random inputs, batch 3, 1 tokens",
    ]
    assert len([case for case in cases if case.startswith("random")]) == 9
    verdicts = HfExport(Options()).judge(outputs, JudgeContext())
    assert {verdict.outcome for verdict in verdicts} == {Outcome.PASS}


def test_random_ids_reach_all_of_the_vocabulary_and_masks_are_padding(exported: Any) -> None:
    with hf_source(exported[0], threads=1) as source:
        feed = source.valid_inputs(64, 1, {"sequence": 12})
    ids, mask = feed["input_ids"], feed["attention_mask"]
    assert ids.shape == (64, 12)
    assert {ids.dtype, mask.dtype} == {np.dtype(np.int64)}
    assert set(np.unique(ids)) == set(range(33))
    assert (np.diff(mask, axis=1) <= 0).all()
    assert mask.sum(1).min() >= 1
    assert mask.sum(1).max() == 12
    assert (ids[mask == 0] == 0).all()


def test_graph_is_as_the_signature_says_and_names_no_place(exported: Any) -> None:
    model, outputs, said = exported
    content = onnx.load(outputs.model.path)
    onnx.checker.check_model(content, full_check=True)
    assert graph.graph_differences(content, model.signature) == []
    assert [dim.dim_param for dim in content.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        "sequence",
    ]
    for secret in (str(model.root), "site-packages", ".py", "stack_trace"):
        assert secret.encode() not in outputs.model.path.read_bytes()
    assert said == []


def test_tokenizer_stays_beside_the_graph(exported: Any) -> None:
    outputs = exported[1]
    assert [entry.path for entry in outputs.model.files] == [
        "model.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert outputs.model.path.name == "model.onnx"
    folder = outputs.model.path.parent
    assert (folder / "tokenizer.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()
    assert outputs.report.details["tokenizer"] == ["tokenizer.json", "tokenizer_config.json"]
    assert outputs.report.details["architecture"] == "BertForSequenceClassification"


def test_calibration_data_is_compared_too(exported: Any) -> None:
    samples = [row["samples"] for row in exported[1].report.details["parity"]]
    assert samples[-3:] == [16, 16, 4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "config", "inputs", "outputs"),
    [
        # inputs in another order than forward's
        ("BertForMaskedLM", lambda: transformers.BertConfig(**WITHOUT_LAYERS), (MASK, IDS, TYPES),
         TensorSpec(name="logits", dtype="float32", shape=("batch", "sequence", 33))),
        ("RobertaForSequenceClassification", lambda: transformers.RobertaConfig(**WITHOUT_LAYERS, pad_token_id=0),
         (IDS, MASK), LOGITS),
        ("DistilBertModel",
         lambda: transformers.DistilBertConfig(
             vocab_size=33, dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=40),
         (IDS, MASK), TensorSpec(name="last_hidden_state", dtype="float32", shape=("batch", "sequence", 32))),
        # the encoder of a model with a head: its pooler was never trained, and is not asked
        ("BertForMaskedLM", lambda: transformers.BertConfig(**WITHOUT_LAYERS), (IDS, MASK),
         TensorSpec(name="last_hidden_state", dtype="float32", shape=("batch", "sequence", 32))),
        ("BertModel", lambda: transformers.BertConfig(**WITHOUT_LAYERS), (IDS,),
         TensorSpec(name="pooler_output", dtype="float32", shape=("batch", 32))),
        ("ViTForImageClassification",
         lambda: transformers.ViTConfig(
             hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=8,
             patch_size=4, num_channels=1),
         (TensorSpec(name="pixel_values", dtype="float32", shape=("batch", 1, 8, 8)),), LOGITS),
    ],
)  # fmt: skip
def test_architecture_and_outputs_decide_what_is_exported(
    kind: str, config: Callable[[], Any], inputs: Any, outputs: TensorSpec, context: Any, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = save(tmp_path / "model", kind, config())
    capfd.readouterr()
    done = export(at(folder, inputs, outputs), context)
    assert capfd.readouterr() == ("", "")
    assert done.report.metrics["parity.max_abs_error"] < 1e-4
    assert [spec.name for spec in done.model.signature.inputs] == [spec.name for spec in inputs]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pooling", "normalize", "wanted"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, True, "mean"),
        ({"pooling_mode": "cls"}, True, "cls"),
        ({"pooling_mode": ["max"]}, False, "max"),
    ],
)
def test_sentence_embedding_is_pooled_as_the_folder_says(
    pooling: Any, normalize: bool, wanted: str, context: Any, tmp_path: Path
) -> None:
    folder = sentence_model(tmp_path / "model", pooling, *(["Normalize"] if normalize else []))
    outputs = export(at(folder, (IDS, MASK), VECTOR), context)
    ids, mask = np.array([[2, 7, 9, 3], [2, 8, 3, 0]]), np.array([[1, 1, 1, 1], [1, 1, 1, 0]])
    found = ask(outputs, input_ids=ids, attention_mask=mask)["sentence_embedding"]
    network = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.inference_mode():
        words = network(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.numpy()
    vectors = np.stack([
        {"mean": row[:n].mean(0), "cls": row[0], "max": row[:n].max(0)}[wanted]
        for row, n in zip(words, (4, 3), strict=True)
    ])  # fmt: skip
    if normalize:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(found, vectors, atol=1e-4)


def opened(model: HuggingFaceModel) -> str:
    with pytest.raises(StageError) as caught, open_source(model):
        pass
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("pooling", "more", "message"),
    [
        (None, (), ("the folder says no pooling (modules.json and 1_Pooling/config.json of sentence-transformers), so "
         "there is no output 'sentence_embedding'; declare last_hidden_state, or add the two files")),
        ({"pooling_mode": "mean"}, ("Dense",), ("modules.json has a Dense after the transformer, which hf-export does "
         "not do; write a builder (models/net.py:build) and use torch-export")),
        ({"pooling_mode": "lasttoken"}, (), ("1_Pooling/config.json asks for pooling lasttoken; hf-export does one of "
         "mean, cls, max: write a builder (models/net.py:build) and use torch-export")),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, (), ("1_Pooling/config.json asks for "
         "pooling mean and cls; hf-export does one of mean, cls, max: write a builder (models/net.py:build) and use "
         "torch-export")),
    ],
)  # fmt: skip
def test_pooling_that_is_not_done_is_named(pooling: Any, more: Any, message: str, tmp_path: Path) -> None:
    assert opened(at(sentence_model(tmp_path / "model", pooling, *more), (IDS, MASK), VECTOR)) == message


def test_weights_of_a_head_that_lack_are_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "BertModel", transformers.BertConfig(**SIZES))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"architectures": ["BertForSequenceClassification"]})
    )
    assert opened(at(folder, (IDS, MASK), LOGITS)) == (
        "the weights of BertForSequenceClassification lack classifier.bias (2 in all), so its output would be random; "
        "declare an output that they have, such as last_hidden_state"
    )


def test_output_that_the_model_has_not_is_named(context: Any, tmp_path: Path) -> None:
    model = tiny(tmp_path)
    other = at(model.root, (IDS, MASK), TensorSpec(name="scores", dtype="float32", shape=("batch", 2)))
    with pytest.raises(StageError) as caught:
        export(other, context)
    assert str(caught.value) == "forward returns logits, but no output 'scores' as declared"


def test_input_that_the_architecture_does_not_take_is_named(tmp_path: Path) -> None:
    config = transformers.DistilBertConfig(vocab_size=33, dim=32, n_layers=1, n_heads=2, hidden_dim=64)
    folder = save(tmp_path / "model", "DistilBertModel", config)
    output = TensorSpec(name="last_hidden_state", dtype="float32", shape=("batch", "sequence", 32))
    assert opened(at(folder, (IDS, MASK, TYPES), output)) == (
        "DistilBertModel takes no input 'token_type_ids', only input_ids, attention_mask, position_ids; correct the "
        "signature"
    )


def change(model: HuggingFaceModel, **entries: Any) -> None:
    path = model.root / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda model: (model.root / "config.json").write_text("{"), "config.json cannot be read: "),
        (lambda model: (model.root / "config.json").write_text("{}"), "config.json names no model_type, "),
        (lambda model: change(model, model_type="made-up"), "config.json names 'BertForX' under architectures, "),
        (lambda model: change(model, architectures=["os"]), "config.json names 'os' under architectures, which "),
        (lambda model: change(model, architectures=[]), "config.json names 'nothing' under architectures, which "),
        (lambda model: change(model, hidden_size=16), "transformers 5."),
        (lambda model: (model.root / "model.safetensors").write_bytes(b"rubbish"), "transformers 5."),
        (lambda model: (model.root / "model.safetensors").unlink(), "the folder has no .safetensors, and its weights "),
    ],
)  # fmt: skip
def test_folder_that_cannot_be_opened_says_why_in_one_line(damage: Any, message: str, tmp_path: Path) -> None:
    model = tiny(tmp_path)
    change(model, architectures=["BertForX"] if "BertForX" in message else ["BertForSequenceClassification"])
    damage(model)
    assert opened(model).startswith(message)


def test_code_of_the_folder_is_not_run(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    (model.root / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Net: ...\n")
    change(model, model_type="own", auto_map={"AutoConfig": "own.Net", "AutoModel": "own.Net"})
    state = TensorSpec(name="last_hidden_state", dtype="float32", shape=("batch", "sequence", 32))
    opened(at(model.root, (IDS, MASK), state))
    assert not (tmp_path / "ran").exists()


def test_folder_without_a_tokenizer_is_refused(context: Any, tmp_path: Path) -> None:
    model = tiny(tmp_path)
    for path in model.root.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(StageError, match=r"^the folder has no tokenizer \(tokenizer\.json, vocab\.txt, "):
        export(model, context)


def test_length_beyond_the_positions_of_the_model_fails(context: Any, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"^the model's forward fails on input_ids int64\[1, 50\], "):
        export(tiny(tmp_path), context, lengths=(50,))


def test_plan_refuses_an_input_that_no_model_has(tmp_path: Path) -> None:
    words = TensorSpec(name="words", dtype="int64", shape=("batch", "sequence"))
    model = HuggingFaceModel(signature=signature((words,), LOGITS))
    ctx = CheckContext(
        project=tmp_path, pipeline="p", inputs={"model": (Upstream("model", "", artifact=model),)}
    )
    with pytest.raises(SpecError) as caught:
        HfExport(Options()).check(ctx)
    assert str(caught.value) == (
        "model.inputs: hf-export asks no Hugging Face model with 'words'; name input_ids, attention_mask, "
        "token_type_ids, position_ids, pixel_values"
    )
