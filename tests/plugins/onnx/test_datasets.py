"""Samples from columns, images and functions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shipctl.errors import StageError, UnavailableError
from shipctl.signature import Signature, TensorSpec
from shipctl.spec.models import DataReading, ImageReading
from shipctl.stages.artifacts import Dataset
from shipctl.stages.context import CheckContext, Upstream
from shipctl.testing.samples import sealed
from shipctl_plugins._onnx import datasets, function_samples
from shipctl_plugins._onnx.arrays import load_arrays, model_inputs
from shipctl_plugins._onnx.datasets import check_readable, read_samples


def signature(*inputs: TensorSpec) -> Signature:
    return Signature(inputs=inputs, outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 2)),))


def tensor(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec.model_validate({"name": name, "dtype": dtype, "shape": ("batch", *shape)})


ONE = signature(tensor("x", 2))


# -- columns -------------------------------------------------------------------------------------------------------


def csv_data(tmp_path: Path, text: str | bytes, **reading: Any) -> Dataset:
    path = tmp_path / "samples.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return sealed(Dataset.at(path, role="evaluation", format="csv", reading=DataReading(**reading)))


def test_columns_in_order_make_the_only_input(tmp_path: Path) -> None:
    data = csv_data(tmp_path, "﻿a,label,b\n1,3,2.5\n\n-1e2,0, 4\n")
    found = load_arrays(data, ONE)
    assert found["x"].dtype == np.float32
    assert found["x"].tolist() == [[1, 2.5], [-100, 4]]
    assert found["label"].dtype == np.int64
    assert found["label"].tolist() == [3, 0]


def test_columns_fill_the_input_row_by_row(tmp_path: Path) -> None:
    data = csv_data(tmp_path, "p0,p1,p2,p3\n0,1,2,3\n")
    assert load_arrays(data, signature(tensor("image", 1, 2, 2)))["image"].tolist() == [[[[0, 1], [2, 3]]]]
    assert load_arrays(data, signature(tensor("image", "n")))["image"].tolist() == [[0, 1, 2, 3]]


def test_columns_called_like_inputs_go_there(tmp_path: Path) -> None:
    data = csv_data(tmp_path, "id,b,a,flag,target\nx,1.5,7,1,0.5\ny,2.5,8,0,1\n", label="target")
    inputs = signature(tensor("a", 1, dtype="int32"), tensor("b"), tensor("flag", dtype="bool"))
    found = read_samples(data, inputs)
    assert {name: (str(array.dtype), array.tolist()) for name, array in found.items()} == {
        "a": ("int32", [[7], [8]]), "b": ("float32", [1.5, 2.5]), "flag": ("bool", [True, False]),
        "label": ("float64", [0.5, 1.0]),
    }  # fmt: skip
    assert set(model_inputs(found, inputs, "evaluation")) == {"a", "b", "flag"}


def test_an_input_may_be_called_label(tmp_path: Path) -> None:
    assert list(read_samples(csv_data(tmp_path, "label\n1\n"), signature(tensor("label")))) == ["label"]


def test_text_labels_are_numbered_in_their_order(tmp_path: Path) -> None:
    data = csv_data(tmp_path, "a,b,kind\n1,2,cat\n1,2,ant\n1,2,cat\n", label="kind")
    assert read_samples(data, ONE)["label"].tolist() == [1, 0, 1]


def test_without_a_signature_each_column_is_an_array(tmp_path: Path) -> None:
    found = read_samples(csv_data(tmp_path, "a,b\n1,2\n3,4.5\n"))
    assert {name: (str(array.dtype), array.tolist()) for name, array in found.items()} == {
        "a": ("int64", [1, 3]), "b": ("float64", [2.0, 4.5]),
    }  # fmt: skip


def test_at_most_so_many_lines_are_read(tmp_path: Path) -> None:
    assert len(read_samples(csv_data(tmp_path, "a,b\n1,2\n3,4\nx,y\n"), ONE, limit=2)["x"]) == 2


def test_header_alone_is_no_samples(tmp_path: Path) -> None:
    assert read_samples(csv_data(tmp_path, "a,b\n"), ONE)["x"].shape == (0, 2)


BYTES, FLAGS = signature(tensor("x", 2, dtype="uint8")), signature(tensor("x", 2, dtype="bool"))


@pytest.mark.parametrize(
    ("text", "inputs", "reading", "message"),
    [
        ("a,b\n1,2\n3,\n", ONE, {}, "samples.csv:3: column 'b' is empty"),
        ("a,b\n1,2\n\nn/a,4\n", ONE, {}, "samples.csv:4: column 'a' is 'n/a', not a number"),
        ("a,b\n1,nan\n", ONE, {}, "samples.csv:2: column 'b' is 'nan', not a finite number"),
        ("a,b\n1,2.5\n", BYTES, {}, "samples.csv:2: column 'b' is '2.5', not a whole number"),
        ("a,b\n1,300\n", BYTES, {}, "samples.csv:2: column 'b' is 300, which is no uint8"),
        ("a,b\n1,2\n", FLAGS, {}, "samples.csv:2: column 'b' is 2, which is no bool"),
        ("a,b\n1,2,3\n", ONE, {}, "samples.csv:2: 3 cells, the header has 2"),
        ("a,b,label\n1,2,\n", ONE, {}, "samples.csv:2: column 'label' is empty"),
        ("a,b,label\n1,2,1\n1,2,x\n", ONE, {},
         "samples.csv:3: column 'label' is 'x': labels before it are numbers"),
        ("a,b,c,label\n1,2,3,0\n", ONE, {},
         ("evaluation data samples.csv has 3 columns beside the label (a, b, c), the model's input takes 2 a sample: "
         "x: float32[batch, 2]")),
        ("a,b\n1,2\n", signature(tensor("a"), tensor("c")), {},
         ("evaluation data samples.csv has no column 'c' for the model's input c: float32[batch], "
         "its columns are a, b; give several inputs as arrays in an .npz file or by a Python function")),
        ("a,b\n1,2\n", ONE, {"label": "y"},
         "evaluation data samples.csv has no column 'y' for the labels, only a, b"),
        ("", ONE, {}, "evaluation data samples.csv is empty; its first line has to name the columns"),
        ("1,2\n3,4\n", ONE, {},
         "evaluation data samples.csv begins with numbers (1, 2); its first line has to name the columns"),
        ("a,a\n3,4\n", ONE, {},
         "evaluation data samples.csv has two columns 'a'; its first line has to name the columns"),
        ("a,\n3,4\n", ONE, {},
         "evaluation data samples.csv has no name for column 2; its first line has to name the columns"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_table_is_named(
    tmp_path: Path, text: str, inputs: Signature, reading: dict[str, Any], message: str
) -> None:
    with pytest.raises(StageError) as caught:
        read_samples(csv_data(tmp_path, text, **reading), inputs)
    assert str(caught.value) == message


@pytest.mark.parametrize("content", [b"a,b\n\xff,2\n", b'a,b\n"1,2\n', b"a,b\n\x00,\x00\n"])
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(
        StageError, match=r"^(evaluation data samples\.csv is no \.csv file|samples\.csv:2: )"
    ):
        read_samples(csv_data(tmp_path, content), ONE)


# -- images --------------------------------------------------------------------------------------------------------


def images(tmp_path: Path, files: dict[str, Any], **reading: Any) -> Dataset:
    image = pytest.importorskip("PIL.Image", reason="needs the images extra")
    root = tmp_path / "images"
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            image.fromarray(np.asarray(content)).save(path)
    form = {"format": "images", "reading": DataReading(image=ImageReading(**reading))}
    return sealed(Dataset.at(root, role="calibration", **form))


RED = np.full((2, 2, 3), (255, 0, 51), dtype=np.uint8)
DARK = np.full((2, 2), 51, dtype=np.uint8)


def test_folders_are_classes_in_their_order(tmp_path: Path) -> None:
    data = images(tmp_path, {"dog/1.png": DARK, "cat/2.png": RED, "cat/deep/1.png": RED})
    found = load_arrays(data, signature(tensor("pixels", 3, 2, 2)))
    assert found["label"].tolist() == [0, 0, 1]
    assert found["pixels"].dtype == np.float32
    assert found["pixels"].shape == (3, 3, 2, 2)
    np.testing.assert_allclose(found["pixels"][0, :, 0, 0], [1, 0, 0.2], rtol=1e-6)
    np.testing.assert_allclose(found["pixels"][2], 0.2, rtol=1e-6)


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    assert list(read_samples(images(tmp_path, {"1.png": DARK}), signature(tensor("x", 1, 2, 2)))) == ["x"]


def test_scale_mean_and_std_are_applied_per_channel(tmp_path: Path) -> None:
    reading = {"scale": 1.0, "mean": (5, 0, 1), "std": (2, 1, 10), "layout": "nhwc"}
    found = read_samples(images(tmp_path, {"1.png": RED}, **reading), signature(tensor("x", 2, 2, 3)))
    assert found["x"][0, 0, 0].tolist() == [125, 0, 5]


def test_bytes_stay_bytes_and_gray_needs_no_channel(tmp_path: Path) -> None:
    data = images(tmp_path, {"1.png": DARK})
    found = read_samples(data, signature(tensor("x", 2, 2, dtype="uint8")))["x"]
    assert (str(found.dtype), found.tolist()) == ("uint8", [[[51, 51], [51, 51]]])
    assert read_samples(data, signature(tensor("x", 2, 2)))["x"].shape == (1, 2, 2)


def test_images_are_resized(tmp_path: Path) -> None:
    data = images(tmp_path, {"1.png": RED, "2.png": np.zeros((5, 7), np.uint8)})
    assert read_samples(data, signature(tensor("x", 3, 4, 6)))["x"].shape == (2, 3, 4, 6)
    sized = images(tmp_path, {}, size=(3, 5))
    assert read_samples(sized, signature(tensor("x", 1, "h", "w")))["x"].shape == (2, 1, 3, 5)
    assert read_samples(sized)["image"].shape == (2, 3, 3, 5)


def test_a_part_of_the_images_is_from_all_classes(tmp_path: Path) -> None:
    data = images(tmp_path, {f"{kind}/{index}.png": DARK for kind in "abc" for index in range(5)})
    assert set(read_samples(data, signature(tensor("x", 1, 2, 2)), limit=3)["label"].tolist()) == {0, 1, 2}


GRAY = signature(tensor("x", 1, 2, 2))


@pytest.mark.parametrize(
    ("files", "reading", "inputs", "message"),
    [
        ({"a/1.png": DARK, "2.png": DARK}, {}, GRAY,
         "calibration data: 2.png stands beside folders with images; put it into the folder of its class"),
        ({"a/1.png": b"rubbish"}, {}, GRAY, "a/1.png is no image that can be read: cannot identify image file '1.png'"),
        ({"a/1.png": np.zeros((2, 2), np.uint16)}, {}, GRAY,
         "a/1.png has pixels of more than 8 bits (mode I;16); convert it"),
        ({"1.png": RED}, {}, signature(tensor("x", 2, 2, 3)),
         ("calibration data: the model's input has 2 channels in layout nchw: x: float32[batch, 2, 2, 3]; images are "
         "gray (1) or RGB (3), and `image: {layout: nhwc}` says that channels come last")),
        ({"1.png": RED}, {}, signature(tensor("x", 3, "h", "w")),
         ("calibration data: the size of images varies in x: float32[batch, 3, h, w]; write "
         "`image: {size: [height, width]}` below it")),
        ({"1.png": RED}, {}, None,
         "calibration data is images of no known size; write `image: {size: [height, width]}` below it"),
        ({"1.png": RED}, {}, signature(tensor("x", 4)),
         "calibration data is images, but the model does not take one image a sample: x: float32[batch, 4]"),
        ({"1.png": RED}, {"mean": (1, 2)}, signature(tensor("x", 3, 2, 2)),
         "calibration data: `image.mean` has 2 values for 3 channels"),
        ({"1.png": RED}, {"std": (0,)}, signature(tensor("x", 3, 2, 2)),
         "calibration data: `image.std` has a 0, by which nothing can be divided"),
        ({"1.png": RED}, {"std": (2,)}, signature(tensor("x", 3, 2, 2, dtype="uint8")),
         "calibration data: the model's input 'x' is uint8; `image.std` is for floats"),
        ({"1.png": RED}, {}, signature(tensor("x", 3, 2, 2, dtype="int64")),
         "calibration data: the model's input 'x' is int64; images are floats or uint8"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_images_is_named(
    tmp_path: Path, files: dict[str, Any], reading: dict[str, Any], inputs: Signature | None, message: str
) -> None:
    with pytest.raises(StageError) as caught:
        read_samples(images(tmp_path, files, **reading), inputs)
    assert str(caught.value) == message


def test_truncated_image_is_named(tmp_path: Path) -> None:
    data = images(tmp_path, {"a/1.png": np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)})
    path = data.root / "a" / "1.png"
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(StageError, match=r"^a/1\.png is no image that can be read: .*truncated"):
        read_samples(data, GRAY)


def test_without_pillow_images_are_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = images(tmp_path, {"1.png": DARK})
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UnavailableError) as caught:
        read_samples(data, GRAY)
    assert str(caught.value) == (
        "calibration data is images, which Pillow reads: pip install 'shipctl[images]'"
    )


def test_without_pillow_a_plan_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = images(tmp_path, {"1.png": DARK})
    ctx = CheckContext(
        project=tmp_path,
        pipeline="p",
        inputs={"calibration": (Upstream("data.calibration", "", artifact=data),)},
    )
    check_readable(ctx)
    monkeypatch.setattr(datasets, "find_spec", lambda name: None)
    with pytest.raises(
        UnavailableError, match=r"^calibration data is images, which Pillow reads: pip install"
    ):
        check_readable(ctx)


# -- functions -----------------------------------------------------------------------------------------------------


def function(tmp_path: Path, body: str) -> Dataset:
    root = tmp_path / "code"
    (root / "data").mkdir(parents=True)
    (root / "data" / "helper_of_samples.py").write_text("OFFSET = 10\n")
    (root / "data" / "samples.py").write_text(
        f"import numpy as np\nfrom helper_of_samples import OFFSET\n\n{body}"
    )
    return sealed(Dataset.at(root, role="calibration", format="python", function="data/samples.py:make"))


@pytest.mark.parametrize(
    "body",
    [
        "def make():\n    return {'x': [[10, 1], [10, 2], [10, 3]], 'label': [0, 1, 2]}\n",
        "def make():\n    for i in range(3):\n        yield {'x': np.array([OFFSET, i + 1]), 'label': i}\n",
        "def make():\n    yield {'x': [[10, 1]], 'label': [0]}\n    yield {'x': [[10, 2], [10, 3]], 'label': [1, 2]}\n",
        "def make():\n    return [{'x': (10, i + 1), 'label': np.int64(i)} for i in range(3)]\n",
    ],
    ids=["mapping", "samples", "batches", "list"],
)
def test_function_gives_samples(tmp_path: Path, body: str) -> None:
    data = function(tmp_path, body)
    before = set(sys.modules), list(sys.path), data.digest
    found = load_arrays(data, ONE)
    assert found["x"].tolist() == [[10, 1], [10, 2], [10, 3]]
    assert found["label"].tolist() == [0, 1, 2]
    assert (set(sys.modules), list(sys.path), sealed(data).digest) == before


def test_endless_generator_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = function(tmp_path, "def make():\n    while True:\n        yield {'x': np.zeros((4, 2))}\n")
    assert len(read_samples(data, ONE, limit=6)["x"]) == 6
    monkeypatch.setattr(function_samples, "MOST_BYTES", 2**20)
    with pytest.raises(StageError) as caught:
        read_samples(data, ONE)
    assert str(caught.value) == (
        "calibration data data/samples.py:make has yielded 65540 samples, 0.0 GiB, and not ended; let it end sooner"
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def other():\n    pass\n", ": there is no function 'make', only other"),
        ("def make():\n    return 3\n", " returns a int; return a mapping from name to array, or yield such"),
        ("def make(n):\n    return {}\n", " fails: TypeError: make() missing 1 required positional argument: 'n'"),
        ("def make():\n    yield {'x': [1, 2]}\n    raise OSError('gone')\n",
         " fails: OSError: gone (data/samples.py:6)"),
        ("def make():\n    yield from ()\n", " yields nothing; give at least one sample"),
        ("def make():\n    yield [1, 2]\n", ", item 1 is a list; yield mappings from name to array"),
        ("def make():\n    return {}\n", " has no arrays; give one for each input of the model"),
        ("def make():\n    yield {'x': [1, 2]}\n    yield {'x': [1, 2, 3]}\n",
         ", item 2: 'x' has shape [3] a sample, those before it [2]"),
        ("def make():\n    yield {'x': [1, 2]}\n    yield {'x': [1, 2], 'label': 1}\n",
         ", item 2 has label, x, those before it x"),
        ("def make():\n    yield {'z': [1, 2]}\n",
         ", item 1 has no array 'x', only z; name its arrays after the model's inputs"),
        ("def make():\n    yield {'x': [[[1, 2]]]}\n",
         ", item 1 is neither a batch nor one sample: x [1, 1, 2]; the model takes x: float32[batch, 2]"),
        ("def make():\n    return {'x': [[1, 2]], 'label': [1, 2]}\n",
         ": the arrays differ in their number of samples: {'x': 1, 'label': 2}"),
        ("def make():\n    return {'x': 1}\n",
         ": 'x' is one number; give an array with the samples in its first dimension"),
        ("def make():\n    return {'x': ['a', 'b']}\n", ": 'x' is <U1 of shape [2]; give arrays of numbers by name"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_function_is_named(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(StageError) as caught:
        read_samples(function(tmp_path, body), ONE)
    assert str(caught.value) == f"calibration data data/samples.py:make{message}"
