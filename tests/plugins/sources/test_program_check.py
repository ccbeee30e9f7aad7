"""What an exported program may hold if opening it must not run code."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import StageError
from shipctl_plugins._sources.program_check import require_plain_program


def program(**nodes: Any) -> dict[str, Any]:
    """Return a program as torch.export.save writes it, in short."""
    return {
        "graph_module": {
            "graph": {
                "nodes": [
                    {"target": "torch.ops.aten.add.Tensor", "name": "add", "metadata": {"nn": "a b()"}}
                ],
                "sym_int_values": {
                    "n": {"as_expr": {"expr_str": "Mul(Integer(3), Symbol('s27', positive=True))"}}
                },
            },
            "signature": {"in_spec": '[1, {"type": "builtins.tuple", "context": "null"}]'},
        },
        "guards_code": ["L['mask'].size()[0] == L['x'].size()[0]"],
        "torch_version": "2.13.0+cpu",
        **nodes,
    }


WEIGHTS = {"config": {"lin.weight": {"path_name": "weight_0", "use_pickle": False}}}


def write(path: Path, content: Any, files: dict[str, Any] | None = None) -> Path:
    parts = {
        "archive_version": "0",
        "models/model.json": content,
        "data/weights/model_weights_config.json": WEIGHTS,
        "data/weights/weight_0": "",
        **(files or {}),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            if part is not None:
                archive.writestr(f"net/{name}", part if isinstance(part, str) else json.dumps(part))
    return path


def test_plain_program_passes(tmp_path: Path) -> None:
    require_plain_program(write(tmp_path / "net.pt2", program()))


def node(**fields: Any) -> dict[str, Any]:
    return program(more={"nodes": [fields]})


@pytest.mark.parametrize(
    ("content", "files", "found"),
    [
        (node(target="torch.hub.load"), {}, "an operator that is none ('torch.hub.load')"),
        (node(target="torch.ops.aten.from_file.default"), {}, "an operator that is none"),
        (node(target="_operator.call"), {}, "an operator that is none ('_operator.call')"),
        (node(target="torch.ops.aten.add.Tensor.__class__.x"), {}, "an operator that is none"),
        (node(target="#namespace:op"), {}, "an operator that is none"),
        (node(expr_str="open('x', 'w')"), {}, "a size that is none (\"open('x', 'w')\")"),
        (node(expr_str="Symbol('s').__class__"), {}, "a size that is none"),
        (node(expr_str="(lambda: 1)()"), {}, "a size that is none"),
        (node(expr_str="[x for x in (1,)][0]"), {}, "a size that is none"),
        (node(expr_str="Symbol('s').free_symbols"), {}, "a size that is none"),
        (node(expr_str="1 +"), {}, "a size that is none"),
        (program(guards_code=["exec('x') or True"]), {}, "a guard that is none"),
        (node(name="x=exec('y')"), {}, "a text that is none"),
        (program(range_constraints={"s0=print()": {}}), {}, "a name that is none"),
        (node(in_spec='{"__enum__": true, "fqn": "os:x"}'), {}, "a text that is none"),
        (program(), {"data/aotinductor/model/x.so": ""}, "compiled code"),
        (program(), {"data/constants/opaque_obj_0": ""}, "an object that is no tensor (opaque_obj_0)"),
        (program(), {"data/weights/model.pt": ""}, "an object that is no tensor (model.pt)"),
        (program(), {"data/weights/model_weights_config.json":
                     {"config": {"a": {"path_name": "weight_0", "use_pickle": True}}}}, "a pickled tensor (a)"),
        (program(), {"data/constants/model_constants_config.json":
                     {"config": {"a": {"path_name": "custom_obj_0"}}}}, "an object that is no tensor (a)"),
    ],
)  # fmt: skip
def test_what_could_run_code_is_named(
    tmp_path: Path, content: Any, files: dict[str, Any], found: str
) -> None:
    path = write(tmp_path / "net.pt2", content, files)
    with pytest.raises(StageError, match=rf"^net\.pt2 holds {re.escape(found)}.*`trust_pickle: true`"):
        require_plain_program(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "net.pt2 is not a whole .pt2 archive: "),
        (lambda path: path.write_bytes(b""), "net.pt2 is not a whole .pt2 archive: "),
        (
            lambda path: write(path, program(), {"archive_version": None}),
            "net.pt2 has no program of the present format in it: it is cut off, or of a torch before 2.8; ",
        ),
        (lambda path: write(path, "{"), "net.pt2 holds JSON that cannot be read; "),
        (lambda path: write(path, "[" * 100_000), "net.pt2 holds JSON that cannot be read; "),
    ],
)
def test_file_that_is_not_whole_is_named(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    path = write(tmp_path / "net.pt2", program())
    damage(path)
    with pytest.raises(StageError, match=rf"^{re.escape(message)}.*torch\.export\.save$"):
        require_plain_program(path)
