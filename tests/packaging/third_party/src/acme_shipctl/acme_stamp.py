"""The stage `acme-stamp`: writes the owner of a model into the model."""

from __future__ import annotations

from pydantic import Field

from shipctl import OnnxModel, Stage, StageContext, StageInputs, StageOptions, StageOutputs


class Options(StageOptions):
    """What stands below `with:`."""

    owner: str = Field(min_length=1, description="Who answers for the model.")


class Inputs(StageInputs):
    """What the stage takes."""

    model: OnnxModel


class Outputs(StageOutputs):
    """What the stage gives."""

    model: OnnxModel


class AcmeStamp(Stage[Options, Inputs, Outputs]):
    """Write the model's owner into its metadata."""

    api_version = 1
    tools = ("onnx",)

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Return the same graph with the metadata property `acme.owner`."""
        import onnx

        model = onnx.load(inputs.model.path)
        onnx.helper.set_model_props(model, {"acme.owner": self.options.owner})
        path = ctx.workdir / "model.onnx"
        onnx.save(model, path)
        source = inputs.model
        stamped = OnnxModel.at(
            path, signature=source.signature, opset=source.opset, derived_from=source.digest
        )
        return Outputs(model=stamped)
