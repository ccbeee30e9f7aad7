"""What an app remembers in its namespace, and the records of its releases, on a real API server."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import SpecError, StageError, StoreError
from shipctl.release.records import AbortWish, Records, ReleaseRecord
from shipctl.spec.models import StoreSpec
from shipctl.spec.units import Duration
from shipctl.stages.base import Phase
from shipctl.store.depot import Depot
from shipctl.store.local import LocalStore
from shipctl_plugins._kubernetes import state as states
from shipctl_plugins._kubernetes.api.access import Access
from shipctl_plugins._kubernetes.api.connection import connect
from shipctl_plugins._kubernetes.app import ANNOTATION_EPOCH, App, Place
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions
from shipctl_plugins._kubernetes.records import MOST_BYTES, PACKED, PLAIN, ConfigMapRecords
from shipctl_plugins._kubernetes.repository import base_uri, lay_out, triton_s3, version_number
from shipctl_plugins._kubernetes.state import Entry, ModelState
from shipctl_plugins.stores.s3_store import S3Store
from support_cluster import CLUSTER, ControlPlane, Kube
from support_kubernetes import candidate
from support_s3 import moto_server, use

OLD, NEW = "a" * 64, "b" * 64


@pytest.fixture
def place(control_plane: ControlPlane, namespace: str) -> Place:
    access = Access(kubeconfig=str(control_plane.kubeconfig), namespace=namespace, timeout=Duration("5s"))
    cluster = connect(access, control_plane.folder, lambda _line: None)
    return Place(cluster, App("shop", namespace, "shop"))


def entry(revision: str) -> Entry:
    return Entry(
        revision=revision, version="1.0.0", model="digits", digest="d" * 64, repository="s3://b/p", image="triton:1",
        replicas=2, since=1.0,
    )  # fmt: skip


# -- the state ------------------------------------------------------------------------------------------------


@CLUSTER
def test_what_was_written_is_read_again(place: Place) -> None:
    assert states.load(place) == (ModelState(), "")
    state = ModelState(stable=OLD, committed=2.0, entries={OLD: entry(OLD)})
    version = states.save(place, state, "", 1)
    assert states.load(place) == (state, version)


@CLUSTER
def test_of_two_that_promote_from_the_same_state_one_is_told(place: Place) -> None:
    version = states.save(place, ModelState(stable=OLD), "", 1)
    states.save(place, ModelState(stable=NEW), version, 1)
    with pytest.raises(StageError, match=r"^shop in test-\w+ was changed by somebody else meanwhile"):
        states.save(place, ModelState(stable="c" * 64), version, 1)
    with pytest.raises(StageError, match="was changed by somebody else meanwhile"):
        states.save(place, ModelState(), "", 1)
    assert states.load(place)[0].stable == NEW


@CLUSTER
def test_what_was_read_before_a_takeover_cannot_be_written_after_it(place: Place) -> None:
    states.fence(place, 1)  # there is nothing yet
    version = states.save(place, ModelState(stable=OLD), "", 1)
    states.fence(place, 2)
    with pytest.raises(StageError):
        states.save(place, ModelState(stable=NEW), version, 1)
    _, version = states.load(place)
    states.fence(place, 2)
    assert states.load(place) == (ModelState(stable=OLD), version), "the same epoch again changed something"


@CLUSTER
def test_what_others_write_beside_it_stays(place: Place, kube: Kube, namespace: str) -> None:
    version = states.save(place, ModelState(stable=OLD), "", 1)
    change: dict[str, Any] = {
        "metadata": {"labels": {"team": "vision"}, "annotations": {"note": "hands off"}}
    }
    kube.patch("ConfigMap", "shop-release", namespace, change)
    with pytest.raises(StageError):
        states.save(place, ModelState(stable=NEW), version, 1)
    states.save(place, ModelState(stable=NEW), states.load(place)[1], 3)
    metadata = kube.get("ConfigMap", "shop-release", namespace)["metadata"]
    assert metadata["labels"]["team"] == "vision"
    assert (metadata["annotations"]["note"], metadata["annotations"][ANNOTATION_EPOCH]) == ("hands off", "3")


@CLUSTER
def test_a_state_that_is_damaged_is_said_to_be(place: Place, kube: Kube, namespace: str) -> None:
    states.save(place, ModelState(stable=OLD), "", 1)
    kube.patch("ConfigMap", "shop-release", namespace, {"data": {"state.json": '{"stable": 5}'}})
    with pytest.raises(
        StoreError, match=rf"^ConfigMap shop-release in {namespace} is damaged \(1 errors in state.json\)"
    ):
        states.load(place)


# -- records --------------------------------------------------------------------------------------------------


def record(number: int, phase: Phase = Phase.DONE, **fields: Any) -> ReleaseRecord:
    given: dict[str, Any] = {
        "number": number, "revision": f"{number:064x}", "version": f"{number}.0.0", "intent": "apply", "run": "r",
        "user": "u", "phase": phase, "started": 1.0, "updated": 2.0,
    }  # fmt: skip
    return ReleaseRecord(**{**given, **fields})


@CLUSTER
def test_records_are_kept_in_the_cluster_and_a_second_writer_is_told(place: Place) -> None:
    kept, other = (ConfigMapRecords(lambda: place, "release") for _ in range(2))
    assert kept.load() == (Records(), "")
    etag = kept.save(Records(records=(record(1),)), "")
    assert other.load() == (Records(records=(record(1),)), etag)
    other.save(Records(records=(record(1), record(2))), etag)
    with pytest.raises(
        StoreError, match=r"^ConfigMap shop-records-release in test-\w+ was changed by another run"
    ):
        kept.save(Records(), etag)
    with pytest.raises(StoreError, match="was changed by another run"):
        kept.save(Records(), "")
    assert len(kept.load()[0].records) == 2


@CLUSTER
def test_many_records_are_packed_and_unpacked_again(place: Place, kube: Kube, namespace: str) -> None:
    kept = ConfigMapRecords(lambda: place, "release")
    many = Records(records=tuple(record(number, message="x" * 2000) for number in range(1, 200)))
    etag = kept.save(many, "")
    assert set(kube.get("ConfigMap", "shop-records-release", namespace)["binaryData"]) == {PACKED}
    assert kept.load() == (many, etag)
    few = Records(records=(record(1),))
    kept.save(few, etag)
    found = kube.get("ConfigMap", "shop-records-release", namespace)
    assert (set(found["data"]), found.get("binaryData")) == ({PLAIN}, None)
    assert kept.load()[0] == few


@CLUSTER
def test_what_is_too_much_for_a_configmap_loses_the_oldest_that_nobody_needs(place: Place) -> None:
    kept = ConfigMapRecords(lambda: place, "release")
    noise = random.Random(1)
    long = [noise.randbytes(20_000).hex() for _ in range(80)]  # cannot be packed to less than half
    many = [record(number, message=text) for number, text in enumerate(long, 1)]
    last = record(81, Phase.SHIFTING, message="it goes on")
    wish = AbortWish(number=81, reason="somebody wants that")
    kept.save(Records(records=(*many, last), abort=wish), "")
    left = kept.load()[0]
    assert left.abort == wish
    numbers = [item.number for item in left.records]
    assert len(left.model_dump_json()) < 2 * MOST_BYTES + 100_000
    assert numbers[-1] == 81
    assert 80 in numbers
    assert 79 in numbers, "what a rollback goes to is needed"
    assert 1 not in numbers


@CLUSTER
def test_records_that_are_damaged_are_said_to_be(place: Place, kube: Kube, namespace: str) -> None:
    kept = ConfigMapRecords(lambda: place, "release")
    kept.save(Records(records=(record(1),)), "")
    kube.patch("ConfigMap", "shop-records-release", namespace, {"data": {PLAIN: "{"}})
    with pytest.raises(StoreError, match="is damaged"):
        kept.load()
    packed = {"data": {PLAIN: None}, "binaryData": {PACKED: "bm90IGd6aXA="}}
    kube.patch("ConfigMap", "shop-records-release", namespace, packed)
    with pytest.raises(StoreError, match=r"is damaged \(BadGzipFile\)"):
        kept.load()


def test_nothing_is_connected_before_records_are_asked_for() -> None:
    def refuse() -> Place:
        message = "it was connected"
        raise AssertionError(message)

    ConfigMapRecords(refuse, "release")


# -- the repository -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "uri"),
    [
        (None, "s3://models/prod"),
        ("http://minio.storage:9000", "s3://http://minio.storage:9000/models/prod"),
        ("https://s3.example.com", "s3://https://s3.example.com:443/models/prod"),
        ("http://10.0.0.1", "s3://http://10.0.0.1:80/models/prod"),
    ],
)
def test_an_address_is_written_as_triton_takes_it(endpoint: str | None, uri: str) -> None:
    assert triton_s3("s3://models/prod/", endpoint) == uri


def test_an_address_that_triton_cannot_take_is_refused() -> None:
    with pytest.raises(
        SpecError, match=r"^Triton cannot read s3://models/my prefix: .*rename the bucket or the prefix"
    ):
        triton_s3("s3://models/my prefix", None)
    with pytest.raises(
        SpecError, match=r"^storeEndpoint 'minio:9000' is not http\(s\)://host:port; correct it"
    ):
        triton_s3("s3://models", "minio:9000")


def test_the_cluster_may_see_the_store_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    store = StoreSpec(uri="s3://models/prod", endpoint="http://127.0.0.1:9000")
    at = {
        None: "s3://http://127.0.0.1:9000/models/prod/repositories",
        "http://minio.storage:9000": "s3://http://minio.storage:9000/models/prod/repositories",
    }
    for endpoint, uri in at.items():
        assert base_uri(KubernetesOptions(storeEndpoint=endpoint), store) == uri
    assert base_uri(KubernetesOptions(modelRepository="/models/"), None) == "/models"


@pytest.mark.parametrize(
    ("store", "what"), [(None, "without `store:`"), (StoreSpec(uri="file:///x"), "the store file:///x")]
)
def test_a_store_that_no_cluster_can_read_is_refused(store: StoreSpec | None, what: str) -> None:
    with pytest.raises(
        SpecError, match=rf"^{what}.*write `store: {{uri: s3://bucket/prefix}}`.*`modelRepository`"
    ):
        base_uri(KubernetesOptions(), store)


def test_a_repository_is_laid_out_once_below_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = candidate(tmp_path, "1.0.0", OLD).repository
    with moto_server() as server:
        use(monkeypatch, server)
        store = S3Store(server.spec(prefix="prod"), tmp_path)
        with Depot(store, LocalStore(tmp_path / "local")) as depot:
            first = lay_out(depot, repository)
            keys = [info.key for info in store.list(f"repositories/{repository.digest}/")]
            again = lay_out(depot, repository)
            assert depot.manifest(repository.digest) == repository.manifest()
            text = store.read(f"repositories/{repository.digest}/digits/1/model.onnx")
    assert [key.split("/", 2)[2] for key in keys] == ["digits/1/model.onnx", "digits/config.pbtxt"]
    assert text == b"digits 1.0.0"
    assert (first.sent, again.sent) == (2, 0)
    assert version_number(repository) == 1
