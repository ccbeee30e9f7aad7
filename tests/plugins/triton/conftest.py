"""A repository artifact for tests of what happens to it, without a model that runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shipctl.stages.artifacts import TritonRepository
from shipctl.testing.samples import SIGNATURE, sealed

MakeRepository = Callable[..., TritonRepository]

CONFIG = 'name: "m"\nparameters { key: "shipctl.model_digest" value { string_value: "%s" } }\n'


@pytest.fixture
def make_repository(tmp_path: Path) -> MakeRepository:
    """Return a function that writes a repository; ``content`` is the model's file, ``config`` more configuration."""

    def make(content: str, *, model: str = "m", config: str = "", **more: str) -> TritonRepository:
        root = tmp_path / "made" / model / content
        (root / model / "1").mkdir(parents=True)
        (root / model / "1" / "model.onnx").write_text(content)
        (root / model / "config.pbtxt").write_text(CONFIG % content + config)
        for name, text in more.items():
            (root / model / name).write_text(text)
        fields = {"model": model, "signature": SIGNATURE, "max_batch_size": 8, "source": "0" * 64}
        return sealed(TritonRepository.at(root, **fields))

    return make
