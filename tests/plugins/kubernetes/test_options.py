"""What may be said about a target in a cluster, and what is refused with which sentence."""

from __future__ import annotations

from typing import Any

import pytest

from shipctl.errors import SpecError
from shipctl.release.references import validated
from shipctl.spec.models import StoreSpec
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions, app_of, with_store


def said(given: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as caught:
        validated(KubernetesOptions, given, "target 'kubernetes'")
    return str(caught.value)


def undescribed(schema: dict[str, Any]) -> list[str]:
    models = schema.get("$defs", {})
    fields = [item for model in (schema, *models.values()) for item in model.get("properties", {}).items()]
    return [
        name
        for name, field in fields
        if not field.get("description")
        # pydantic leaves out a description that equals that of the model
        and not models.get(field.get("$ref", "").rpartition("/")[2], {}).get("description")
    ]


def test_no_option_has_to_be_given() -> None:
    options = KubernetesOptions()
    assert (options.replicas, options.service.type, options.router.uses) == (2, "ClusterIP", "replicas")


def test_every_option_is_described() -> None:
    assert undescribed(KubernetesOptions.model_json_schema()) == []


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"name": "Digits"}, "'Digits' is not a name for a Service; write at most 40 lower-case letters"),
        ({"name": "4digits"}, "'4digits' is not a name for a Service"),
        ({"image": "triton server"}, "'triton server' is not an image; write registry/repository:tag"),
        (
            {"namespace": "Team_A"},
            "'Team_A' is not a name of Kubernetes; write at most 63 lower-case letters",
        ),
        (
            {"resources": {"memory": "2GB"}},
            "'2GB' is not a quantity of Kubernetes; write a number and a unit",
        ),
        ({"resources": {"cpu": "-1"}}, "'-1' is not a quantity of Kubernetes"),
        ({"podLabels": {"a b": "c"}}, "'a b' is not the key of a label"),
        ({"podLabels": {"team": "a b"}}, "'a b' is not the value of a label; write at most 63 letters"),
        (
            {"podLabels": {"app.kubernetes.io/instance": "x"}},
            "'app.kubernetes.io/instance' is written by shipctl itself; choose a key of your own, such as team",
        ),
        (
            {"podAnnotations": {"shipctl.dev/revision-digest": "x"}},
            "'shipctl.dev/revision-digest' is written by shipctl itself",
        ),
        (
            {"env": {"AWS_SECRET_ACCESS_KEY": "abc"}},
            "would see its value; put it into a Secret of the namespace and name that by credentialsSecret",
        ),
        ({"env": {"A": "x\0y"}}, "has a zero byte, which no process can be given; remove it"),
        (
            {"args": ["log-verbose"]},
            "'log-verbose' is not a flag of tritonserver; write --name or --name=value",
        ),
        ({"args": ["--http-port=1"]}, "'--http-port=1' is set by shipctl itself; remove it from args"),
        (
            {"service": {"loadBalancerSourceRanges": ["10.0.0.0/8"]}},
            "are for `type: LoadBalancer`, not ClusterIP",
        ),
        (
            {"service": {"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.1/8"]}},
            "'10.0.0.1/8' is not a range of addresses; write it as 10.0.0.0/8, with no bits set behind the length",
        ),
        ({"service": {"httpPort": 8001}}, "httpPort and grpcPort are both 8001; change one"),
        (
            {"service": {"httpPort": 0}},
            "with.service.httpPort must be greater than or equal to 1, not 0; correct it",
        ),
        ({"ingress": {"host": "a..b"}}, "'a..b' is not a host name; write it in lower case"),
        (
            {"serviceAccount": {"name": "a", "annotations": {"b": "c"}}},
            "the service account 'a' is not made by shipctl",
        ),
        ({"tolerations": [{"effect": "NoSchedule"}]}, "needs `operator: Exists`; add it, or a key"),
        (
            {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]},
            "operator Exists takes no value",
        ),
        (
            {"autoscaling": {"minReplicas": 9, "maxReplicas": 3}},
            "minReplicas 9 is above maxReplicas 3; change one",
        ),
        (
            {"autoscaling": {"engine": "keda"}},
            "engine keda asks Prometheus itself; write serverAddress: http://",
        ),
        (
            {"autoscaling": {"serverAddress": "http://p:9090"}},
            "serverAddress is for engine keda; remove it, or",
        ),
        ({"autoscaling": {"queueTime": "10us"}}, "queueTime 10us is below 1ms"),
        (
            {"router": "istio", "replicas": 1, "autoscaling": {}},
            "1 replicas are not within minReplicas 2 and maxReplicas 10",
        ),
        (
            {"autoscaling": {}},
            "the router 'replicas' makes shares of numbers of pods, which an autoscaler would change",
        ),
        ({"networkPolicy": {"from": [{}]}}, "write either cidr or one of namespaceSelector and podSelector"),
        (
            {"disruptionBudget": {"maxUnavailable": 0}},
            "with.disruptionBudget.maxUnavailable must be greater than or equal to 1, not 0; correct it",
        ),
        ({"kubernetesVersion": "1.34.2"}, "'1.34.2' is not a version of Kubernetes; write major and minor"),
        ({"watchdog": {}}, "'image' is missing in with.watchdog; add it"),
        ({"replica": 2}, "did you mean 'replicas'"),
    ],
)
def test_what_no_cluster_takes_is_refused_with_what_to_write(given: dict[str, Any], sentence: str) -> None:
    assert sentence in said(given)


def test_a_secret_value_is_not_repeated_in_the_refusal() -> None:
    assert "hunter2" not in said({"env": {"DB_PASSWORD": "hunter2"}})


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "API_KEY", "AWS_ACCESS_KEY_ID", "db_password", "TLS_PRIVATE_KEY"]
)
def test_a_secret_is_told_by_its_name(name: str) -> None:
    assert f"{name!r} looks like a secret" in said({"env": {name: "x"}})


@pytest.mark.parametrize(
    "name",
    ["TOKENIZERS_PARALLELISM", "MAX_TOKENS", "AWS_WEB_IDENTITY_TOKEN_FILE", "GOOGLE_APPLICATION_CREDENTIALS"],
)
def test_what_only_sounds_like_a_secret_is_taken(name: str) -> None:
    assert KubernetesOptions(env={name: "x"}).env == {name: "x"}


def test_an_app_is_called_after_its_pipeline_and_environment() -> None:
    options = KubernetesOptions()
    assert app_of(options, "digits", None).name == "digits"
    assert app_of(options, "digits", "prod").name == "digits-prod"
    assert app_of(options, "digits", None).namespace == "default"
    assert app_of(options, "digits", None, "of-the-context").namespace == "of-the-context"
    chosen = KubernetesOptions(name="numbers", namespace="team-a")
    assert (app_of(chosen, "digits", "prod", "of-the-context").name, app_of(chosen, "d", None).namespace) == (
        "numbers",
        "team-a",
    )


def test_a_worker_keeps_the_defaults_of_what_is_not_said() -> None:
    options = KubernetesOptions.model_validate({"watchdog": {"image": "a:1", "resources": {"cpu": "1"}}})
    assert options.watchdog is not None
    assert options.watchdog.resources == {"cpu": "1", "memory": "192Mi"}
    workers = {"comparator": {"image": "a:1", "resources": {"cpu": "1"}}, "watchdog": {"image": "a:1"}}
    options = KubernetesOptions.model_validate(workers)
    assert options.comparator is not None
    assert options.comparator.resources == {"cpu": "1", "memory": "512Mi"}
    assert options.watchdog is not None
    assert options.watchdog.resources == {"cpu": "50m", "memory": "192Mi"}


def test_what_the_spec_says_of_its_store_holds_in_the_cluster_unless_the_target_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    store = StoreSpec(uri="s3://models", endpoint="http://localhost:9000", region="eu-central-1")

    def seen(options: KubernetesOptions, store: StoreSpec | None = store) -> tuple[str | None, str | None]:
        found = with_store(options, store)
        return found.storeEndpoint, found.storeRegion

    assert seen(KubernetesOptions()) == ("http://localhost:9000", "eu-central-1")
    inside = KubernetesOptions(storeEndpoint="http://minio.store:9000", storeRegion="us-east-1")
    assert seen(inside) == ("http://minio.store:9000", "us-east-1")
    assert seen(KubernetesOptions(modelRepository="s3://other/models")) == (None, None)
    assert seen(KubernetesOptions(), None) == (None, None)
    assert seen(KubernetesOptions(), StoreSpec(uri="/srv/models")) == (None, None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
    assert seen(KubernetesOptions(), StoreSpec(uri="s3://models")) == ("http://minio:9000", None)
