"""Speaks to MLflow for shipctl, in a process of its own: a JSON line per request on stdin, one per answer on stdout.

MLflow reads credentials, time-outs and retries from the environment in the moment of each call, takes more than a
second to import, reports usage, logs, prints, and may leave an `mlruns` folder where it stands. Here all of that
concerns nobody: the environment is this process's own, and the working directory a temporary one.

This file is run as a script and imports nothing of shipctl. The first line of stdin holds environment variables
(credentials among them, which so are in no process list); the process ends when stdin closes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

PAGE = 200
_CREATES = frozenset({"create_registered_model", "create_version", "create_experiment", "create_run"})
"""Never sent twice by MLflow itself: an answer that was lost would make a second one."""


class Agent:
    """The calls that shipctl makes. Arguments and answers are JSON; what does not exist is None."""

    def __init__(self, tracking_uri: str) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri)
        self._tracking_uri = tracking_uri

    def answer(self, call: str, arguments: dict[str, Any], retries: int) -> Any:
        """Make one call; ``retries`` is how often MLflow may repeat a request that is safe to repeat."""
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = str(0 if call in _CREATES else retries)
        return getattr(self, call)(**arguments)

    # -- the registry ----------------------------------------------------------------------------------------

    def ping(self) -> None:
        self._client.search_registered_models(max_results=1)

    def registered_model(self, name: str) -> dict[str, Any] | None:
        found = _or_none(lambda: self._client.get_registered_model(name))
        if found is None:
            return None
        aliases = {alias: int(version) for alias, version in found.aliases.items()}
        return {
            "name": found.name,
            "description": found.description or "",
            "tags": dict(found.tags),
            "aliases": aliases,
        }

    def create_registered_model(self, name: str, description: str, tags: dict[str, str]) -> None:
        self._client.create_registered_model(name, tags=tags, description=description)

    def describe_registered_model(self, name: str, description: str) -> None:
        self._client.update_registered_model(name, description=description)

    def tag_registered_model(self, name: str, key: str, value: str) -> None:
        self._client.set_registered_model_tag(name, key, value)

    def delete_registered_model(self, name: str) -> None:
        self._client.delete_registered_model(name)

    def versions(self, name: str, tag: str | None = None, value: str = "") -> list[dict[str, Any]]:
        wanted = f"name = '{name}'" + (f" and tags.`{tag}` = '{value}'" if tag else "")
        found = _pages(
            lambda token: self._client.search_model_versions(wanted, max_results=PAGE, page_token=token)
        )
        return [_version(item) for item in found]

    def version(self, name: str, version: int) -> dict[str, Any] | None:
        found = _or_none(lambda: self._client.get_model_version(name, str(version)))
        return None if found is None else _version(found)

    def create_version(
        self, name: str, source: str, run_id: str, description: str, tags: dict[str, str]
    ) -> dict[str, Any]:
        made = self._client.create_model_version(
            name, source, run_id, tags=tags, description=description, await_creation_for=0
        )
        return _version(made)

    def tag_version(self, name: str, version: int, key: str, value: str) -> None:
        self._client.set_model_version_tag(name, str(version), key, value)

    def describe_version(self, name: str, version: int, description: str) -> None:
        self._client.update_model_version(name, str(version), description)

    def delete_version(self, name: str, version: int) -> None:
        self._client.delete_model_version(name, str(version))

    def set_alias(self, name: str, alias: str, version: int) -> None:
        self._client.set_registered_model_alias(name, alias, str(version))

    def delete_alias(self, name: str, alias: str) -> None:
        self._client.delete_registered_model_alias(name, alias)

    # -- runs ------------------------------------------------------------------------------------------------

    def experiment(self, name: str) -> dict[str, Any] | None:
        found = self._client.get_experiment_by_name(name)
        return (
            None
            if found is None
            else {"id": found.experiment_id, "active": found.lifecycle_stage == "active"}
        )

    def create_experiment(self, name: str, tags: dict[str, str]) -> str:
        return str(self._client.create_experiment(name, tags=tags))

    def runs(self, experiment: str, tag: str, value: str) -> list[dict[str, Any]]:
        wanted = f"tags.`{tag}` = '{value}'"
        found = _pages(
            lambda token: self._client.search_runs([experiment], wanted, max_results=PAGE, page_token=token)
        )
        return [_run(item) for item in found]

    def create_run(self, experiment: str, name: str, start_time: int, tags: dict[str, str]) -> dict[str, Any]:
        return _run(self._client.create_run(experiment, start_time=start_time, tags=tags, run_name=name))

    def log_run(self, run_id: str, time: int, metrics: dict[str, float], params: dict[str, str]) -> None:
        from mlflow.entities import Metric, Param

        self._client.log_batch(
            run_id,
            metrics=[Metric(key, value, time, 0) for key, value in metrics.items()],
            params=[Param(key, value) for key, value in params.items()],
        )

    def finish_run(self, run_id: str) -> None:
        self._client.set_terminated(run_id, "FINISHED")

    def delete_run(self, run_id: str) -> None:
        self._client.delete_run(run_id)

    # -- artifacts -------------------------------------------------------------------------------------------

    def list_artifacts(self, uri: str) -> list[dict[str, Any]]:
        """Return all files below ``uri``, folders walked into, with paths relative to it."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        repository = get_artifact_repository(uri, tracking_uri=self._tracking_uri)
        waiting: list[str | None] = [None]
        found: list[dict[str, Any]] = []
        while waiting:
            for item in repository.list_artifacts(waiting.pop()):
                if item.is_dir:
                    waiting.append(item.path)
                else:
                    found.append({"path": item.path, "size": item.file_size})
        return sorted(found, key=lambda item: str(item["path"]))

    def download(self, uri: str, path: str, folder: str) -> str:
        """Download one file of ``uri`` to below ``folder`` and return where it is."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        repository: Any = get_artifact_repository(uri, tracking_uri=self._tracking_uri)
        return str(Path(repository.download_artifacts(path, dst_path=folder)).absolute())

    def external_data(self, path: str) -> list[str]:
        """Return the names of the external data files that an ONNX graph refers to, as written in it."""
        import onnx

        graph = onnx.load(path, load_external_data=False)
        names: set[str] = set()
        for tensor in _tensors(graph):
            names.update(entry.value for entry in tensor.external_data if entry.key == "location")
        return sorted(names)


def _tensors(message: Any) -> Iterator[Any]:
    """Yield every TensorProto in a protobuf message, those in attributes and subgraphs too."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            repeated = not hasattr(value, "ListFields")
            for item in value if repeated else (value,):
                yield from _tensors(item)


def _pages(fetch: Callable[[str | None], Any]) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = fetch(token)
        yield from page
        token = page.token
        if not token:
            return


def _or_none(get: Callable[[], Any]) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return get()
    except MlflowException as exc:
        if exc.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _version(item: Any) -> dict[str, Any]:
    return {
        "name": item.name,
        "version": int(item.version),
        "source": item.source or "",
        "run_id": item.run_id or "",
        "status": str(item.status),
        "created": (item.creation_timestamp or 0) / 1000,
        "description": item.description or "",
        "tags": dict(item.tags),
    }


def _run(item: Any) -> dict[str, Any]:
    return {
        "id": item.info.run_id,
        "start_time": item.info.start_time,
        "finished": item.info.status == "FINISHED",
        "metrics": dict(item.data.metrics),
        "tags": dict(item.data.tags),
    }


def explain(exc: BaseException) -> dict[str, Any]:
    """Return what went wrong as JSON: MLflow's error code, HTTP status where there was one, and the innermost cause."""
    import requests
    from mlflow.exceptions import MlflowException

    kind = "error"
    cause = ""
    seen: list[BaseException] = []
    link: BaseException | None = exc
    while link is not None and link not in seen:
        seen.append(link)
        if isinstance(link, requests.exceptions.ConnectionError | requests.exceptions.Timeout):
            kind = "unreachable"
        if isinstance(link, requests.exceptions.RetryError):
            kind = "failing"
            cause = cause or "".join(re.findall(r"too many (\d+)", str(link))[:1])
        if isinstance(link, OSError) and link.strerror:
            cause = link.strerror
        elif isinstance(link, TimeoutError | requests.exceptions.Timeout):
            cause = cause or "timed out"
        inner = getattr(link, "reason", None)
        link = inner if isinstance(inner, BaseException) else link.__cause__ or link.__context__
    code = exc.error_code if isinstance(exc, MlflowException) else type(exc).__name__
    return {"kind": kind, "code": str(code), "cause": cause, "message": str(exc)}


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more."""
    setup = json.loads(requests.readline())
    # Artifact repositories ask the environment, whatever the client was told.
    os.environ.update({**setup["environ"], "MLFLOW_TRACKING_URI": setup["uri"]})
    agent: Agent | None = None
    for line in requests:
        request = json.loads(line)
        try:
            agent = agent or Agent(setup["uri"])
            reply = {"value": agent.answer(request["call"], request["arguments"], setup["retries"])}
        except ImportError as exc:
            reply = {"error": {"kind": "import", "code": "", "cause": "", "message": str(exc)}}
        except Exception as exc:  # noqa: BLE001  (whatever it was, it is the answer)
            reply = {"error": explain(exc)}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)  # what MLflow prints is no answer
        try:
            serve(sys.stdin, out)
        finally:
            shutil.rmtree(
                Path.cwd(), ignore_errors=True
            )  # ours alone, and whoever made it may have been killed
