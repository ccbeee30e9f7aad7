"""The topology of ResNet-50 as the onnx package has it for its own tests: real structure, constant weights.

``python specs/models/resnet50_light.py`` puts it beside this file, with golden samples in ``../data``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

HERE = Path(__file__).parent
SOURCE = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_resnet50.onnx"
MODEL = HERE / "resnet50-light.onnx"
GOLDEN = HERE.parent / "data" / "resnet50-light-golden.npz"
IMAGE, ANSWER = "gpu_0/data_0", "gpu_0/softmax_1"
"""The names that Caffe2 gave the graph's input, float32 [1, 3, 224, 224], and output, float32 [1, 1000]."""


def main() -> None:
    """Copy the graph and let ONNX Runtime answer two images of noise."""
    shutil.copyfile(SOURCE, MODEL)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).random((2, 3, 224, 224), dtype=np.float32)
    answers = np.concatenate([session.run([ANSWER], {IMAGE: image[None]})[0] for image in images])
    np.savez_compressed(GOLDEN, allow_pickle=False, **{IMAGE: images, ANSWER: answers})
    print(f"{MODEL.name}: {MODEL.stat().st_size} bytes; golden samples in {GOLDEN.name}")


if __name__ == "__main__":
    main()
