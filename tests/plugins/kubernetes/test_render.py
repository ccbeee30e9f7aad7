"""What is put on a cluster: what a release relies on, what a platform team asks for, and values that stay values."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from shipctl.errors import SpecError
from shipctl_plugins._kubernetes import comparator
from shipctl_plugins._kubernetes.app import ANNOTATION_REPOSITORY, ANNOTATION_REVISION, LABEL_REVISION
from shipctl_plugins._kubernetes.lint.practice import practice
from shipctl_plugins._kubernetes.lint.problems import problems
from shipctl_plugins._kubernetes.manifests.autoscaling import adapter_rule
from shipctl_plugins._kubernetes.manifests.documents import files_of, in_yaml, objects_in, yaml_of
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions
from shipctl_plugins._kubernetes.manifests.render import (
    ALL,
    door,
    elsewhere,
    operator_role,
    preview_service,
    revision_objects,
)
from support_rendering import (
    COMBINATIONS,
    DIGEST,
    REVISION,
    everything,
    of_kind,
    options_of,
    workload_of,
)

HOSTILE = (
    '": {}',
    "a\nb: c\n---\nkind: Secret",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "# no comment",
    "\u2028\x85\ufeff",
    "😀\t'\"",
)


def deployment(**given: Any) -> dict[str, Any]:
    options = options_of(**given)
    return revision_objects(options, workload_of(options), replicas=2, base=Path())[0]


def pod(**given: Any) -> dict[str, Any]:
    found: dict[str, Any] = deployment(**given)["spec"]["template"]["spec"]
    return found


def server(**given: Any) -> dict[str, Any]:
    found: dict[str, Any] = pod(**given)["containers"][0]
    return found


def environment(**given: Any) -> dict[str, Any]:
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in server(**given)["env"]}


# -- what a release relies on --------------------------------------------------------------------------------


def test_a_revision_has_a_deployment_and_a_service_of_its_own_name() -> None:
    options = options_of()
    objects = revision_objects(options, workload_of(options), replicas=3, base=Path())
    assert [(one["kind"], one["metadata"]["name"]) for one in objects] == [
        ("Deployment", "digits-cnn-0123456789"),
        ("Service", "digits-cnn-0123456789"),
        ("PodDisruptionBudget", "digits-cnn-0123456789"),
    ]
    assert {one["metadata"]["namespace"] for one in objects} == {"team-a"}
    assert objects[0]["spec"]["replicas"] == 3


def test_everything_is_found_by_the_labels_of_the_app() -> None:
    for name, combination in COMBINATIONS.items():
        options = options_of(**combination)
        app = workload_of(options).app
        for one in everything(options):
            assert app.selector.items() <= one["metadata"]["labels"].items(), f"{name}: {one['metadata']}"


def test_the_role_of_who_runs_shipctl_is_its_administrators() -> None:
    """What has all labels of the selector is deleted when it is not rendered any more."""
    options = options_of()
    app = workload_of(options).app
    team = {"kind": "Group", "name": "ml-team", "apiGroup": "rbac.authorization.k8s.io"}
    for one in operator_role(options, app, subjects=(team,)):
        assert not app.selector.items() & one["metadata"]["labels"].items()
        assert one["metadata"]["labels"] == {"app.kubernetes.io/part-of": "digits-cnn"}


def test_pods_say_which_revision_they_are_and_which_bytes_they_serve() -> None:
    template = deployment()["spec"]["template"]
    assert template["metadata"]["labels"][LABEL_REVISION] == REVISION[:10]
    assert template["metadata"]["annotations"] == {
        ANNOTATION_REVISION: REVISION,
        ANNOTATION_REPOSITORY: DIGEST,
    }
    flags = template["spec"]["containers"][0]["args"]
    assert f"--model-repository=s3://http://minio.store:9000/models/repositories/{DIGEST}" in flags


def test_a_deployment_tells_what_else_is_known_of_its_revision() -> None:
    notes = {"shipctl.dev/model": "digits-cnn", "shipctl.dev/model-version": "1"}
    assert notes.items() <= deployment()["metadata"]["annotations"].items()
    scaled = options_of(router="service", autoscaling={"queueTime": "1ms"})
    annotations = of_kind(everything(scaled), "Deployment")["metadata"]["annotations"]
    assert {**notes, "shipctl.dev/autoscaled": "true"}.items() <= annotations.items()


def test_a_comparator_has_room_for_answers_and_a_watchdog_needs_less() -> None:
    workers = {"watchdog": {"image": "shipctl:1"}, "comparator": {"image": "shipctl:1"}}
    objects = everything(options_of(**workers))
    for name, memory in {"watchdog": "192Mi", "comparator": "512Mi"}.items():
        pod = of_kind(objects, "Deployment", f"digits-cnn-{name}")["spec"]["template"]["spec"]
        resources = pod["containers"][0]["resources"]
        assert (resources["requests"]["memory"], resources["limits"]["memory"]) == (memory, memory)


def test_a_version_is_a_label_whatever_is_in_it() -> None:
    options = options_of()
    workload = workload_of(options, version="1.4.0-rc.1+build." + "x" * 80)
    label = revision_objects(options, workload, base=Path())[0]["metadata"]["labels"][
        "app.kubernetes.io/version"
    ]
    assert label.startswith("1.4.0-rc.1_build.x")
    assert len(label) <= 63


def test_replicas_are_left_out_where_they_are_another_ones() -> None:
    options = options_of()
    assert "replicas" not in revision_objects(options, workload_of(options), base=Path())[0]["spec"]
    scaled = options_of(router="service", autoscaling={})
    assert "replicas" not in revision_objects(scaled, workload_of(scaled), replicas=4, base=Path())[0]["spec"]


def test_the_door_leads_to_one_revision_to_all_or_to_nobody() -> None:
    options = options_of()
    workload = workload_of(options)
    labels = deployment()["spec"]["template"]["metadata"]["labels"]

    def selects(manifest: dict[str, Any]) -> bool:
        return bool(manifest["spec"]["selector"].items() <= labels.items())

    assert selects(door(options, workload.app, REVISION))
    assert selects(door(options, workload.app, ALL))
    assert selects(preview_service(options, workload.app, REVISION))
    assert not selects(door(options, workload.app, "f" * 64))
    assert not selects(door(options, workload.app, None))


def test_the_door_is_as_the_options_say() -> None:
    options = options_of(**COMBINATIONS["load balancer"])
    manifest = door(options, workload_of(options).app, REVISION)
    spec = manifest["spec"]
    assert manifest["metadata"]["annotations"] == {"example.com/internal": "true"}
    assert (spec["type"], spec["loadBalancerSourceRanges"], spec["externalTrafficPolicy"]) == (
        "LoadBalancer",
        ["10.0.0.0/8"],
        "Local",
    )
    assert [(port["port"], port["targetPort"]) for port in spec["ports"]] == [(80, "http"), (81, "grpc")]


# -- what a platform team asks for ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMBINATIONS)
def test_what_is_rendered_is_good_practice(name: str) -> None:
    alone = COMBINATIONS[name].get("replicas") == 1
    found = practice(everything(options_of(**COMBINATIONS[name])))
    assert [
        line for line in found if not (alone and ("replica," in line or "DisruptionBudget" in line))
    ] == []


def test_a_pod_that_ends_has_time_for_its_longest_request() -> None:
    given: dict[str, Any] = {"longestRequest": "90500ms", "drain": "20s"}
    container = server(**given)
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "20"]
    assert "--exit-timeout-secs=91" in container["args"]
    assert pod(**given)["terminationGracePeriodSeconds"] > 20 + 91


def test_a_slow_start_is_neither_killed_nor_given_up_too_early() -> None:
    given = {"startup": "30m"}
    probe = server(**given)["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 1800
    assert deployment(**given)["spec"]["progressDeadlineSeconds"] > 1800


def test_the_server_writes_only_to_tmp_and_shared_memory_and_never_as_root() -> None:
    spec = pod(resources={"sharedMemory": "1Gi", "scratch": "20Gi"})
    container = spec["containers"][0]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]} == {
        "/tmp": "tmp",
        "/dev/shm": "shm",
    }
    assert {volume["name"]: volume["emptyDir"] for volume in spec["volumes"]} == {
        "tmp": {"sizeLimit": "20Gi"},
        "shm": {"medium": "Memory", "sizeLimit": "1Gi"},
    }


def test_no_user_is_set_where_the_cluster_gives_one() -> None:
    assert set(pod(runAsUser=None)["securityContext"]) == {"runAsNonRoot", "seccompProfile"}


def test_memory_and_gpus_are_limited_to_what_is_requested() -> None:
    resources = server(**COMBINATIONS["gpu slices"])["resources"]
    both = {"memory": "2Gi", "nvidia.com/mig-1g.10gb": "2"}
    assert resources == {"requests": {"cpu": "4", **both}, "limits": {"cpu": "8", **both}}
    assert "cpu" not in server()["resources"]["limits"]


def test_a_pod_without_gpus_sees_none_and_one_with_some_gets_onto_their_nodes() -> None:
    assert environment()["NVIDIA_VISIBLE_DEVICES"] == "void"
    with_gpu: dict[str, Any] = {"resources": {"gpu": 1}}
    assert "NVIDIA_VISIBLE_DEVICES" not in environment(**with_gpu)
    assert pod(**with_gpu)["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    assert "tolerations" not in pod()


def test_credentials_are_named_and_nowhere_written() -> None:
    found = environment(credentialsSecret="store", storeRegion="eu-central-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert found[name] == {"secretKeyRef": {"name": "store", "key": name}}
    assert found["AWS_SESSION_TOKEN"]["secretKeyRef"]["optional"] is True
    assert found["AWS_DEFAULT_REGION"] == "eu-central-1"
    assert not any(name.startswith("AWS_") for name in environment())


def test_a_variable_of_ours_can_be_set_otherwise() -> None:
    names = [item["name"] for item in server(env={"HOME": "/home/triton"})["env"]]
    assert environment(env={"HOME": "/home/triton"})["HOME"] == "/home/triton"
    assert names.count("HOME") == 1


def test_a_node_drain_is_never_blocked_and_a_broken_candidate_does_not_block_stables() -> None:
    for replicas in (1, 2):
        options = options_of(replicas=replicas)
        budget = of_kind(everything(options), "PodDisruptionBudget")["spec"]
        assert budget["maxUnavailable"] == 1
        assert budget["selector"]["matchLabels"][LABEL_REVISION] == REVISION[:10]
        assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_an_account_is_made_unless_one_is_named() -> None:
    assert of_kind(everything(options_of()), "ServiceAccount")["metadata"]["name"] == "digits-cnn"
    named = options_of(serviceAccount={"name": "models"})
    assert [one for one in everything(named) if one["kind"] == "ServiceAccount"] == []
    assert pod(serviceAccount={"name": "models"})["serviceAccountName"] == "models"


# -- the network ---------------------------------------------------------------------------------------------


def policy(**given: Any) -> dict[str, Any]:
    found: dict[str, Any] = of_kind(everything(options_of(**given)), "NetworkPolicy", "digits-cnn")["spec"]
    return found


def clients(**given: Any) -> Any:
    return policy(**given)["ingress"][0].get("from")


OWN = {"podSelector": {"matchLabels": {"app.kubernetes.io/instance": "digits-cnn"}}}


def test_requests_come_from_the_namespace_alone_unless_the_model_is_published() -> None:
    anywhere: dict[str, Any] = {"namespaceSelector": {}}
    assert clients() == [OWN, {"podSelector": {}}]
    assert clients(ingress={"host": "a.example.com"}) == [OWN, anywhere]
    assert clients(router="gateway-api") == [OWN, anywhere]
    assert clients(service={"type": "NodePort"}) is None
    named = {"from": [{"namespaceSelector": {"team": "b"}, "podSelector": {}}]}
    assert clients(networkPolicy=named, service={"type": "NodePort"}) == [
        OWN,
        {"namespaceSelector": {"matchLabels": {"team": "b"}}, "podSelector": {}},
    ]


def test_the_preflight_gets_through_the_policy() -> None:
    system = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
    assert policy()["ingress"][1]["from"] == [system]
    assert policy(networkPolicy={"apiServer": ["10.1.0.0/24"]})["ingress"][1]["from"] == [
        {"ipBlock": {"cidr": "10.1.0.0/24"}}
    ]


@pytest.mark.parametrize(
    ("given", "ports"),
    [
        ({}, [443]),
        ({"storeEndpoint": "http://minio.store:9000", "credentialsSecret": "s"}, [9000]),
        ({"storeEndpoint": "https://minio.store", "credentialsSecret": "s"}, [443]),
        ({"storeEndpoint": "http://minio.store", "credentialsSecret": "s"}, [80]),
        ({"storeEndpoint": "http://minio.store:9000"}, [443, 9000]),
        ({"modelRepository": "s3://http://minio.store:9000/models", "credentialsSecret": "s"}, [9000]),
        ({"modelRepository": "s3://models/prefix", "credentialsSecret": "s"}, [443]),
    ],
)
def test_pods_reach_name_servers_and_the_store(given: dict[str, Any], ports: list[int]) -> None:
    names, store = policy(**given)["egress"]
    assert [port["port"] for port in names["ports"]] == [53, 53]
    assert [port["port"] for port in store["ports"]] == ports


def test_a_repository_on_a_volume_needs_no_store() -> None:
    assert len(policy(modelRepository="/models")["egress"]) == 1


# -- scaling and monitoring ----------------------------------------------------------------------------------


def test_pods_are_added_by_the_mean_time_that_requests_wait() -> None:
    scaler = of_kind(everything(options_of(**COMBINATIONS["gateway, hpa"])), "HorizontalPodAutoscaler")[
        "spec"
    ]
    assert scaler["scaleTargetRef"]["name"] == "digits-cnn-0123456789"
    assert scaler["metrics"] == [
        {
            "type": "Pods",
            "pods": {
                "metric": {"name": adapter_rule()["name"]["as"]},
                "target": {"type": "AverageValue", "averageValue": "1500u"},
            },
        }
    ]


def test_keda_asks_for_the_mean_of_this_revision_and_does_not_divide_it_again() -> None:
    trigger = of_kind(everything(options_of(**COMBINATIONS["istio, keda"])), "ScaledObject")["spec"][
        "triggers"
    ][0]
    assert trigger["metricType"] == "Value"
    assert trigger["metadata"]["threshold"] == "0.01"
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    assert trigger["metadata"]["query"] == (
        'sum(rate(nv_inference_queue_duration_us{namespace="team-a",pod=~"digits-cnn-0123456789-.+"}[2m])) / '
        'clamp_min(sum(rate(nv_inference_request_success{namespace="team-a",pod=~"digits-cnn-0123456789-.+"}[2m])), '
        "0.001) / 1e6"
    )


def test_series_carry_the_revision_and_no_pod_is_scraped_twice() -> None:
    pods = of_kind(everything(options_of(monitoring={"interval": "30s"})), "PodMonitor")["spec"]
    assert LABEL_REVISION in pods["podTargetLabels"]
    assert pods["podMetricsEndpoints"] == [{"port": "metrics", "path": "/metrics", "interval": "30s"}]
    objects = everything(options_of(**COMBINATIONS["istio, keda"]))
    monitor = of_kind(objects, "ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    selector = monitor["spec"]["selector"]
    assert LABEL_REVISION in monitor["spec"]["podTargetLabels"]
    assert selector["matchExpressions"] == [{"key": LABEL_REVISION, "operator": "Exists"}]
    scraped = [
        one["metadata"]["name"]
        for one in objects
        if one["kind"] == "Service"
        and selector["matchLabels"].items() <= one["metadata"]["labels"].items()
        and LABEL_REVISION in one["metadata"]["labels"]
    ]
    assert scraped == ["digits-cnn-0123456789"]


# -- rights --------------------------------------------------------------------------------------------------


def rights(rules: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {
        (verb, resource, name)
        for rule in rules
        for verb in rule["verbs"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", ["*"])
    }


@pytest.mark.parametrize("router", ["replicas", "service", "gateway-api", "istio"])
def test_who_runs_shipctl_has_every_right_that_it_gives(router: str) -> None:
    worker = {"image": "registry.example.com/shipctl:1.0"}
    options = options_of(router=router, watchdog=worker, comparator=worker)
    own = operator_role(options, workload_of(options).app)[0]["rules"]
    for verb, resource, name in rights(of_kind(everything(options), "Role")["rules"]):
        assert {(verb, resource, name), (verb, resource, "*")} & rights(own), f"{verb} {resource} {name}"


def test_nobody_reads_secrets_or_may_do_everything() -> None:
    for combination in COMBINATIONS.values():
        options = options_of(**combination)
        for one in [*everything(options), *operator_role(options, workload_of(options).app)]:
            for rule in one.get("rules", []):
                assert not {"*", "secrets", "pods/exec"} & {
                    *rule["resources"],
                    *rule["verbs"],
                    *rule["apiGroups"],
                }


def test_only_what_the_router_writes_may_be_written() -> None:
    def written(router: Any, group: str) -> set[tuple[str, str, str]]:
        options = options_of(router=router)
        rules = operator_role(options, workload_of(options).app)[0]["rules"]
        return {
            right
            for right in rights([rule for rule in rules if rule["apiGroups"] == [group]])
            if right[0] != "get"
        }

    gateway, istio = "gateway.networking.k8s.io", "networking.istio.io"
    assert written("replicas", gateway) == set()
    assert ("update", "httproutes", "digits-cnn") in written("gateway-api", gateway)
    assert not any(resource == "grpcroutes" for _, resource, _ in written("gateway-api", gateway))
    both = {"uses": "gateway-api", "with": {"gateways": [{"name": "g"}], "grpc": True}}
    assert ("update", "grpcroutes", "digits-cnn") in written(both, gateway)
    others = {"uses": "gateway-api", "with": {"route": "shop"}}
    assert written(others, gateway) == {("patch", "httproutes", "shop"), ("update", "httproutes", "shop")}
    assert ("patch", "virtualservices", "digits-cnn") in written("istio", istio)
    mesh = {"uses": "istio", "with": {"virtualService": "shop"}}
    assert written(mesh, istio) == {
        ("patch", "virtualservices", "shop"),
        ("update", "virtualservices", "shop"),
    }


def test_a_role_is_bound_to_those_who_are_named() -> None:
    options = options_of()
    team = {"kind": "Group", "name": "ml-team", "apiGroup": "rbac.authorization.k8s.io"}
    role, binding = operator_role(options, workload_of(options).app, subjects=(team,))
    assert binding["subjects"] == [team]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


def test_workers_run_with_an_account_of_their_own() -> None:
    objects = everything(options_of(**COMBINATIONS["gateway, hpa"]))
    watchdog = of_kind(objects, "Deployment", "digits-cnn-watchdog")["spec"]["template"]["spec"]
    assert watchdog["serviceAccountName"] == "digits-cnn-watchdog"
    assert watchdog["containers"][0]["command"][-4:] == ["--app", "digits-cnn", "--namespace", "team-a"]
    lease = of_kind(objects, "Role", "digits-cnn-watchdog")["rules"][0]
    assert (lease["resources"], lease["resourceNames"]) == (["leases"], ["digits-cnn-release"])


def test_the_comparator_has_no_rights_and_hides_what_it_found_from_whose_requests_it_gets() -> None:
    objects = everything(options_of(**COMBINATIONS["gateway, hpa"]))
    name = "digits-cnn-comparator"
    assert (
        of_kind(objects, "Deployment", name)["spec"]["template"]["spec"]["automountServiceAccountToken"]
        is False
    )
    assert [one for one in objects if one["kind"] == "RoleBinding" and one["metadata"]["name"] == name] == []
    copies, results = of_kind(objects, "NetworkPolicy", name)["spec"]["ingress"]
    assert [port["port"] for port in copies["ports"]] == ["http", "grpc"]
    assert [port["port"] for port in results["ports"]] == ["results"]
    assert {"namespaceSelector": {}} in copies["from"]
    assert {"namespaceSelector": {}} not in results["from"]
    ports = {port["name"]: port["port"] for port in of_kind(objects, "Service", name)["spec"]["ports"]}
    assert ports == {"http": comparator.HTTP, "grpc": comparator.GRPC, "results": comparator.RESULTS}


# -- values that stay values ---------------------------------------------------------------------------------

texts = st.text(
    st.characters(codec="utf-8", exclude_characters="\0")
    | st.sampled_from("{}%#:'\"\n\r\t\u2028\x85\ufeff&*!|>-$`\\"),
    max_size=40,
)
names = st.text(string.ascii_letters + string.digits, min_size=1, max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_a_value_in_a_template_is_that_value_again(value: Any) -> None:
    assert yaml.safe_load(f"before: 1\nvalue: {in_yaml(value)}\nafter: 2\n") == {
        "before": 1,
        "value": value,
        "after": 2,
    }


@given(st.dictionaries(names, json_values, min_size=1, max_size=4))
def test_what_is_written_is_read_again_by_yaml_1_1_and_1_2(value: dict[str, Any]) -> None:
    text = yaml_of([value])
    assert list(yaml.safe_load_all(text)) == [value]
    assert YAML(typ="safe", pure=True).load(text) == value


@pytest.mark.parametrize(
    "text", ["yes", "NO", "y", "null", "~", "1e3", "0x1f", "0o17", "012", "1:30", "=", "<<", ".inf"]
)
def test_texts_that_look_like_something_else_stay_texts(text: str) -> None:
    written = yaml_of([{"a": text}])
    assert YAML(typ="safe", pure=True).load(written) == yaml.safe_load(written) == {"a": text}
    assert f'"{text}"' in written


@settings(max_examples=25)
@given(
    value=texts | st.sampled_from(HOSTILE),
    key=names,
    label=st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,10}[A-Za-z0-9])?", fullmatch=True),
)
def test_no_value_breaks_out_of_its_place(value: str, key: str, label: str) -> None:
    options = options_of(
        env={f"V{key}": value},
        args=[f"--log-file={value}"],
        podAnnotations={f"example.com/{key}": value},
        podLabels={f"example.com/{key}": label},
        service={"annotations": {f"example.com/{key}": value}},
        serviceAccount={"annotations": {f"example.com/{key}": value}},
    )
    objects = everything(options)
    assert [one["kind"] for one in objects] == [one["kind"] for one in everything(options_of())]
    template = of_kind(objects, "Deployment")["spec"]["template"]
    container = template["spec"]["containers"][0]
    assert {"name": f"V{key}", "value": value} in container["env"]
    assert container["args"][-1] == f"--log-file={value}"
    assert template["metadata"]["annotations"][f"example.com/{key}"] == value
    assert template["metadata"]["labels"][f"example.com/{key}"] == label
    assert of_kind(objects, "ServiceAccount")["metadata"]["annotations"] == {f"example.com/{key}": value}
    assert list(yaml.safe_load_all(yaml_of(objects))) == objects
    assert problems(objects) == []


def test_a_repository_names_no_variables() -> None:
    options = options_of()
    workload = workload_of(options)
    odd = type(workload)(**{**vars(workload), "repository": "s3://b/$(AWS_SECRET_ACCESS_KEY)"})
    flags = revision_objects(options, odd, base=Path())[0]["spec"]["template"]["spec"]["containers"][0][
        "args"
    ]
    assert flags[0] == "--model-repository=s3://b/$$(AWS_SECRET_ACCESS_KEY)"


# -- files and templates -------------------------------------------------------------------------------------


def test_the_same_is_written_in_the_same_way() -> None:
    options = options_of(**COMBINATIONS["gateway, hpa"])
    files = files_of(everything(options))
    assert files == files_of(reversed(everything(options)))
    assert list(files)[:2] == [
        "deployment-digits-cnn-0123456789.yaml",
        "deployment-digits-cnn-comparator.yaml",
    ]
    assert files["ingress-digits-cnn.yaml"] == (
        "apiVersion: networking.k8s.io/v1\n"
        "kind: Ingress\n"
        "metadata:\n"
        "  name: digits-cnn\n"
        "  namespace: team-a\n"
        "  labels:\n"
        "    app.kubernetes.io/instance: digits-cnn\n"
        "    app.kubernetes.io/managed-by: shipctl\n"
        "    app.kubernetes.io/part-of: digits-cnn\n"
        "spec:\n"
        "  ingressClassName: nginx\n"
        "  tls:\n"
        "    - hosts:\n"
        "        - digits.example.com\n"
        "      secretName: digits-tls\n"
        "  rules:\n"
        "    - host: digits.example.com\n"
        "      http:\n"
        "        paths:\n"
        "          - path: /\n"
        "            pathType: Prefix\n"
        "            backend:\n"
        "              service:\n"
        "                name: digits-cnn\n"
        "                port:\n"
        "                  name: http\n"
    )


def test_two_objects_never_share_a_file() -> None:
    one = door(options_of(), workload_of(options_of()).app, None)
    with pytest.raises(ValueError, match="two objects for service-digits-cnn"):
        files_of([one, one])


BUDGET = """\
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{ metadata | toyaml }}
spec:
  maxUnavailable: 50%
  selector:
    matchLabels: {{ selector | toyaml }}
"""


def own_templates(folder: Path, text: str, name: str = "poddisruptionbudget.yaml.j2") -> KubernetesOptions:
    (folder / "k8s").mkdir()
    (folder / "k8s" / name).write_text(text)
    return options_of(templates="k8s")


def test_a_template_of_the_project_stands_in_for_ours(tmp_path: Path) -> None:
    objects = everything(own_templates(tmp_path, BUDGET), tmp_path)
    assert of_kind(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == "50%"
    assert of_kind(objects, "Deployment")["spec"]["minReadySeconds"] == 5


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (BUDGET.replace("selector |", "selectors |"), "'selectors' is undefined; correct it"),
        (BUDGET + "\t- x: [", "makes no YAML: line 8 of what it makes"),
        (
            BUDGET.replace("{{ metadata | toyaml }}", "{name: other}"),
            "does not keep metadata.name: it has 'other'",
        ),
        (
            BUDGET.replace("{{ metadata | toyaml }}", "{name: {{ metadata.name }}, namespace: team-a}"),
            "metadata.labels",
        ),
        ("", "makes 0 objects and not one; correct it"),
        (BUDGET + "---\n" + BUDGET, "makes 2 objects and not one; correct it"),
        ("- a\n", "makes something without apiVersion, kind and metadata"),
    ],
)
def test_a_template_that_does_not_work_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        everything(own_templates(tmp_path, text), tmp_path)
    assert str(caught.value).startswith(f"the template {tmp_path / 'k8s' / 'poddisruptionbudget.yaml.j2'}")
    assert sentence in str(caught.value)


def test_a_template_that_stands_in_for_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"stands in for none of shipctl's; did you mean 'deployment\.yaml\.j2'"
    ):
        everything(own_templates(tmp_path, BUDGET, "deploymnet.yaml.j2"), tmp_path)


def test_a_folder_of_templates_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is no folder; write the path of one, relative to the spec's folder"):
        everything(options_of(templates="k8s"), tmp_path)


def test_text_that_is_no_object_is_refused() -> None:
    with pytest.raises(SpecError, match="it makes something without"):
        objects_in("kind: Service\n", "it")


@pytest.mark.parametrize("name", COMBINATIONS)
def test_everything_fits_together(name: str) -> None:
    options = options_of(**COMBINATIONS[name])
    assert problems(everything(options), elsewhere=elsewhere(options)) == []
