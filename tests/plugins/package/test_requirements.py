"""What a requirements file names."""

from __future__ import annotations

import pytest

pytest.importorskip("packaging")

from shipctl_plugins._evidence.requirements import Requirement, read_requirements

TEXT = """
# pinned by hand
numpy==2.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
Ruamel_YAML>=1,<2 ; python_version<"3.12"  # for the spec
--index-url https://user:password@host/simple
onnx[a,b]==1.*
torch==2.13.0+cpu
"""


def test_distributions_are_named_with_their_versions() -> None:
    parsed = read_requirements(TEXT)
    assert parsed.unreadable == ()
    assert parsed.found == (
        Requirement("numpy", "==2.0", "2.0", "", 3),
        Requirement("ruamel-yaml", "<2,>=1", None, 'python_version < "3.12"', 6),
        Requirement("onnx", "==1.*", None, "", 8),
        Requirement("torch", "==2.13.0+cpu", "2.13.0+cpu", "", 9),
    )


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("-r more.txt", "-r more.txt"),
        ("--requirement=more.txt", "--requirement=more.txt"),
        ("-c constraints.txt", "-c constraints.txt"),
        ("-e .", "-e ."),
        ("./local", "./local"),
        ("https://host/x.whl", "https://host/x.whl"),
        ("numpy=2", "numpy=2"),
        ("x @ https://user:password@host/x.whl", "x @ (a URL)"),
    ],
)
def test_lines_that_bring_something_unnamed_are_reported(line: str, shown: str) -> None:
    parsed = read_requirements(f"numpy==2.0\n{line}\n")
    assert parsed.unreadable == ((2, shown),)


def test_file_may_end_within_a_line() -> None:
    assert [item.name for item in read_requirements("a==1 \\\n  \\").found] == ["a"]
