"""`shipctl init`."""

from __future__ import annotations

from pathlib import Path

import click

from shipctl.cli.output import Output, common_options
from shipctl.cli.types import PATH


@click.command("init")
@click.argument("model")
@click.option(
    "--input",
    "inputs",
    metavar="TENSOR",
    multiple=True,
    help="An input, such as 'image: float32[batch, 1, 8, 8]'; repeatable.",
)
@click.option(
    "--output",
    "outputs",
    metavar="TENSOR",
    multiple=True,
    help="An output, written the same way; repeatable.",
)
@click.option(
    "--directory",
    metavar="DIR",
    type=PATH,
    default=Path(),
    help="The project; the current folder by default.",
)
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@common_options
def command(
    model: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    directory: Path,
    force: bool,  # noqa: FBT001
) -> None:
    """Write a starter spec for MODEL, and a GitHub Actions workflow.

    MODEL is path.py:function for a PyTorch model in source form, or an .onnx file, whose inputs and outputs
    are read from it. The workflow plans on a pull request and applies on main. Files that exist stay.
    """
    from shipctl.cli.scaffold import render_tree, write_files
    from shipctl.cli.starter import inspect_model, relative

    output = Output.current()
    starter = inspect_model(model, inputs, outputs)
    folder = directory / "specs"
    spec = f"specs/{starter.name}.yaml"
    extras = ["cpu", "optimize", "triton", *(["torch"] if starter.is_torch else [])]
    variables = {
        "name": starter.name,
        "spec": spec,
        "uri": starter.uri(folder),
        "weights": relative(starter.weights, folder) if starter.weights else None,
        "signature": starter.signature,
        "is_example": starter.is_example,
        "is_torch": starter.is_torch,
        "extras": ",".join(sorted(extras)),
    }
    workflow = Path(".github", "workflows")
    files = render_tree("init", variables)
    files |= {workflow / path: text for path, text in render_tree("ci", variables).items()}
    for path in write_files(directory, files, force=force):
        output.say(f"wrote {path}")
    if starter.is_example:
        output.say("its inputs and outputs are an example: write there what your model takes and gives")
    output.say(f"next: shipctl plan {directory / spec}")
