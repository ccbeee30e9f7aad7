"""`shipctl render` and `shipctl diff`."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from shipctl.cli.documents.rendering import DiffDocument, RenderDocument
from shipctl.testing.fixtures import SampleProject
from support_cli import RELEASING, Call, install

MODULE = '''
"""A release whose target takes manifests."""

from light_stages import Release
from shipctl import StageError


class Manifested(Release):
    """Put a manifest on a shelf."""

    def check(self, ctx):
        (ctx.project / "asked").touch()

    def rights(self, ctx):
        return {"role-light.yaml": "kind: Role\\nmetadata: {name: light}\\n"}

    def manifests(self, inputs, ctx):
        return {
            "deployment-light.yaml": f"---\\nkind: Deployment\\nmetadata: {{name: light}}\\nversion: {ctx.version}\\n",
            "service-light.yaml": "kind: Service\\nmetadata: {name: light}",
        }

    def diff(self, inputs, ctx):
        if self.options.target == "deaf":
            raise StageError("the API server does not answer; look at it")
        served = self._served(ctx)
        if served is not None and served["version"] == ctx.version:
            return ()
        return ["--- live/deployment-light", "+++ new/deployment-light", "@@ -1 +1 @@",
                f"-version: {served and served['version']}", f"+version: {ctx.version}"]
'''

SPEC = RELEASING.replace("uses: light-release", "uses: light-manifested")


@pytest.fixture
def made(light: SampleProject, light_stages: Path, call: Call) -> SampleProject:
    """A project whose release has all that it needs."""
    install(
        light_stages,
        "manifested",
        MODULE,
        "[shipctl.stages]\nlight-manifested = manifested:Manifested\n",
    )
    light.write({"spec.yaml": SPEC})
    assert call("apply", "spec.yaml", "--until", "score").exit_code == 0
    return light


def test_render_prints_one_stream_of_documents(made: SampleProject, call: Call) -> None:
    result = call("render", "spec.yaml")
    assert result.exit_code == 0
    assert result.lines[0].startswith("# release on shelf: 1.0.0 (")
    assert result.lines[1:4] == ["---", "# deployment-light.yaml", "kind: Deployment"]
    documents = list(YAML(typ="safe").load_all(result.stdout))
    assert [item["kind"] for item in documents] == ["Deployment", "Service"]
    assert call("render", "-q").stdout == result.stdout


def test_render_asks_nobody_not_even_whether_it_could(made: SampleProject, call: Call) -> None:
    asked = made.root / "asked"
    asked.unlink(missing_ok=True)
    assert call("render").exit_code == 0
    assert call("render", "--rights").exit_code == 0
    assert not asked.exists()
    assert call("diff").exit_code == 0
    assert asked.exists()


def test_render_writes_one_file_per_object(made: SampleProject, call: Call) -> None:
    result = call("render", "-o", "out/tree")
    assert result.stdout == "written to out/tree: 2 files\n"
    folder = made.root / "out" / "tree"
    assert sorted(path.name for path in folder.iterdir()) == ["deployment-light.yaml", "service-light.yaml"]
    assert (folder / "service-light.yaml").read_text() == "kind: Service\nmetadata: {name: light}\n"


def test_render_of_two_releases_keeps_their_files_apart(made: SampleProject, call: Call) -> None:
    second = (
        "  - id: again\n    uses: light-manifested\n    needs: [copy, score]\n    with: {target: other}\n"
    )
    made.write({"spec.yaml": SPEC + second})
    assert call("render", "-o", "out").stdout == "written to out: 4 files\n"
    assert (made.root / "out" / "again" / "service-light.yaml").exists()
    assert (made.root / "out" / "release" / "service-light.yaml").exists()
    assert call("render", "--stage", "again", "-o", "one").stdout == "written to one: 2 files\n"
    assert (made.root / "one" / "service-light.yaml").exists()


def test_render_where_nothing_can_be_written(made: SampleProject, call: Call) -> None:
    made.write({"out": "a file"})
    result = call("render", "-o", "out")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: cannot write out/deployment-light.yaml: File exists; name another folder with -o\n",
    )


def test_render_as_a_document(made: SampleProject, call: Call) -> None:
    document = RenderDocument.model_validate(call("render", "--json").document)
    (release,) = document.releases
    assert (release.stage, release.target, release.version) == ("release", "shelf", "1.0.0")
    assert [file.path for file in release.files] == ["deployment-light.yaml", "service-light.yaml"]
    assert document.folder is None


def test_render_before_the_stages_above_have_run(light: SampleProject, call: Call) -> None:
    light.write({"spec.yaml": RELEASING})
    result = call("render")
    assert (result.exit_code, result.stdout, result.stderr) == (
        2,
        "",
        (
            "error: release has nothing to release yet: copy, score have not run; "
            "run `shipctl apply spec.yaml --until score` first\n"
        ),
    )


def test_render_for_a_target_without_manifests(light: SampleProject, call: Call) -> None:
    light.write({"spec.yaml": RELEASING})
    assert call("apply", "--until", "score").exit_code == 0
    (line,) = call("render").lines
    assert line.startswith("# release on shelf: 1.0.0 (")
    assert line.endswith("; this target takes no manifests")


def test_diff_shows_what_would_change_and_ends_well(made: SampleProject, call: Call) -> None:
    result = call("diff")
    assert (result.exit_code, result.stdout) == (
        0,
        "--- live/deployment-light\n+++ new/deployment-light\n@@ -1 +1 @@\n-version: None\n+version: 1.0.0\n",
    )


def test_exit_code_tells_a_difference_apart_from_a_failure(made: SampleProject, call: Call) -> None:
    assert call("diff", "--exit-code").exit_code == 9
    assert call("diff", "--exit-code", "--json").exit_code == 9
    assert call("apply").exit_code == 0
    result = call("diff", "--exit-code")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    made.write(
        {"spec.yaml": SPEC.replace("needs: [copy, score]", "needs: [copy, score]\n    with: {target: deaf}")}
    )
    result = call("diff", "--exit-code")
    assert (result.exit_code, result.stderr) == (1, "error: the API server does not answer; look at it\n")


def test_diff_as_a_document(made: SampleProject, call: Call) -> None:
    document = DiffDocument.model_validate(call("diff", "--json").document)
    assert document.changed
    assert document.releases[0].changed
    assert document.releases[0].lines[-1] == "+version: 1.0.0"
    call("apply")
    document = DiffDocument.model_validate(call("diff", "--json").document)
    assert (document.changed, document.releases[0].lines) == (False, ())


def test_rights_are_there_before_anything_has_been_made(
    light: SampleProject, light_stages: Path, call: Call, tmp_path: Path
) -> None:
    """Whoever gives them has not run anything."""
    points = "[shipctl.stages]\nlight-manifested = manifested:Manifested\n"
    install(light_stages, "manifested", MODULE, points)
    light.write({"spec.yaml": SPEC})
    result = call("render", "spec.yaml", "--rights")
    assert result.exit_code == 0
    assert result.lines == [
        "# release on shelf", "---", "# role-light.yaml", "kind: Role", "metadata: {name: light}",
    ]  # fmt: skip
    written = call("render", "spec.yaml", "--rights", "-o", str(tmp_path / "out"))
    assert written.exit_code == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["role-light.yaml"]
