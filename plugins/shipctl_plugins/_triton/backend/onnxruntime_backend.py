"""Triton's `onnxruntime` backend, as a python-based backend over the onnxruntime wheel, on the CPU.

The wheel that brings tritonserver has no native ONNX Runtime backend. Triton lets a backend be written in
Python (`backends/<name>/model.py`), so this file, copied to `backends/onnxruntime/model.py`, serves
production repositories unmodified: `backend: "onnxruntime"` or `platform: "onnxruntime_onnx"`, the graph in
`<version>/model.onnx`. Like the native one it completes a configuration that leaves inputs and outputs out,
and refuses one whose names, dtypes or dimensions disagree with the graph.

It runs inside Triton's stub process, in the server's own environment: it imports nothing of shipctl.
Protocol: github.com/triton-inference-server/python_backend, README, "Python Based Backends".
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

TRITON_TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(bool)": "TYPE_BOOL",
    "tensor(string)": "TYPE_STRING",
}
DEFAULT_MAX_BATCH_SIZE = 4  # what the native backend completes a batchable model with
OPTIMIZATION_LEVELS = {  # `optimization.graph.level`, as the native backend reads it
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def open_session(folder, config):
    """Open the graph of the version folder ``folder`` with the options of ``config`` (a dict of config.pbtxt)."""
    parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    options = onnxruntime.SessionOptions()
    # One thread each unless asked for: Triton gets its parallelism from instances.
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", 1))
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 1))
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = OPTIMIZATION_LEVELS.get(
        level, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    )
    graph = Path(folder) / (config.get("default_model_filename") or "model.onnx")
    if not graph.is_file():
        raise pb_utils.TritonModelException(f"unable to find '{graph}' for model '{config['name']}'")
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def dimensions(tensor):
    """Return the shape of a graph's tensor in Triton's terms: -1 for what varies."""
    return [size if isinstance(size, int) and size > 0 else -1 for size in tensor.shape]


def check_tensors(kind, configured, tensors, config):
    """Raise unless each configured input (or output) is one of the graph's, with its dtype and dimensions."""
    model, batched = config["name"], config["max_batch_size"] > 0
    known = {tensor.name: tensor for tensor in tensors}
    for entry in configured:
        name, dtype = entry["name"], entry["data_type"]
        if name not in known:
            allowed = ", ".join(sorted(known))
            raise pb_utils.TritonModelException(
                f"unexpected inference {kind} '{name}' in model '{model}', allowed {kind}s are: {allowed}"
            )
        provided = TRITON_TYPES.get(known[name].type)
        if dtype != provided:
            raise pb_utils.TritonModelException(
                f"unable to load model '{model}', configuration expects datatype {dtype} for {kind} '{name}', "
                f"model provides {provided}"
            )
        actual = dimensions(known[name])
        where = f"model '{model}', tensor '{name}'"
        if batched and actual[:1] != [-1]:
            raise pb_utils.TritonModelException(
                f"{where}: for the model to support batching the shape should have at least 1 dimension and the "
                f"first dimension must be -1; but shape expected by the model is {actual}"
            )
        shape = entry["reshape"]["shape"] if "reshape" in entry else entry["dims"]
        expected = [-1] * batched + [int(size) for size in shape]
        agree = len(expected) == len(actual) and all(
            have in (-1, want)
            for want, have in zip(expected, actual)  # noqa: B905  (Python 3.8)
        )
        if not agree:
            raise pb_utils.TritonModelException(
                f"{where}: the model expects {len(actual)} dimensions (shape {actual}) but the model configuration "
                f"specifies {len(expected)} dimensions (shape {expected})"
            )


class TritonPythonModel:
    """One instance of one version of one model."""

    @staticmethod
    def auto_complete_config(auto_complete):
        """Fill in inputs, outputs and, for a wholly empty configuration, batching."""
        config = auto_complete.as_dict()
        session = open_session(pb_utils.get_model_dir(), config)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        max_batch_size = config.get("max_batch_size", 0)
        is_empty = not config["input"] and not config["output"] and max_batch_size == 0
        if is_empty and all(dimensions(tensor)[:1] == [-1] for tensor in (*inputs, *outputs)):
            max_batch_size = DEFAULT_MAX_BATCH_SIZE
            auto_complete.set_max_batch_size(max_batch_size)
            if "dynamic_batching" not in config and "sequence_batching" not in config:
                auto_complete.set_dynamic_batching()
        skip = 1 if max_batch_size > 0 else 0
        for configured, tensors, add in (
            (config["input"], inputs, auto_complete.add_input),
            (config["output"], outputs, auto_complete.add_output),
        ):
            for tensor in () if configured else tensors:
                dims = dimensions(tensor)[skip:]
                add({"name": tensor.name, "data_type": TRITON_TYPES[tensor.type], "dims": dims or [1]})
                if not dims:  # Triton does not accept empty dims, and `add` no reshape
                    configured[-1]["reshape"] = {"shape": []}
        return auto_complete

    def initialize(self, args):
        """Open the session; raise where configuration and graph disagree."""
        config = json.loads(args["model_config"])
        self.session = open_session(pb_utils.get_model_dir(), config)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        check_tensors("input", config["input"], inputs, config)
        check_tensors("output", config["output"], outputs, config)
        if len(config["input"]) != len(inputs):
            raise pb_utils.TritonModelException(
                f"unable to load model '{config['name']}', configuration expects {len(config['input'])} inputs, "
                f"model provides {len(inputs)}"
            )
        self.batched = config["max_batch_size"] > 0
        self.inputs = [entry["name"] for entry in config["input"]]
        self.outputs = [entry["name"] for entry in config["output"]]

    def execute(self, requests):
        """Answer a dynamic batch: requests whose tensors fit together run as one."""
        feeds = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for request in requests
        ]
        groups = {}
        for index, feed in enumerate(feeds):
            shapes = tuple(feed[name].shape[1:] for name in self.inputs) if self.batched else index
            groups.setdefault(shapes, []).append(index)
        answers = [None] * len(requests)
        errors = []
        for members in groups.values():
            try:
                self.answer(requests, feeds, members, answers)
            except Exception:  # one bad request must not fail the others of its batch: each by itself
                for index in members:
                    try:
                        self.answer(requests, feeds, [index], answers)
                    except Exception as error:
                        errors.append(str(error))
                        answers[index] = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        if errors and len(errors) == len(requests):
            # Triton counts a response that carries an error as nv_inference_request_success; only an
            # exception is counted as a failure.
            raise pb_utils.TritonModelException(errors[0])
        return answers

    def answer(self, requests, feeds, members, answers):
        """Run the requests ``members`` as one batch and put their responses into ``answers``."""
        feed = feeds[members[0]]
        if len(members) > 1:
            feed = {name: np.concatenate([feeds[index][name] for index in members]) for name in self.inputs}
        results = self.session.run(self.outputs, feed)
        start = 0
        for index in members:
            parts = results
            if len(members) > 1:
                stop = start + len(feeds[index][self.inputs[0]])
                parts = [result[start:stop] for result in results]
                start = stop
            wanted = set(requests[index].requested_output_names())
            answers[index] = pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(name, part)
                    for name, part in zip(self.outputs, parts)  # noqa: B905  (Python 3.8)
                    if name in wanted
                ]
            )

    def finalize(self):
        """Let the session go."""
        self.session = None
