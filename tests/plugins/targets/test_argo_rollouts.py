"""The target `argo-rollouts` on a real control plane, where the tests play Argo's controller; and what it renders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

import support_kubernetes
from shipctl.errors import SpecError, StageError
from shipctl.release.delegated import DelegatedTarget, Standing
from shipctl.release.options import StrategyInputs
from shipctl.release.references import validated
from shipctl.release.stage import StrategyStage
from shipctl.release.strategy import AnalysisOptions, Strategy, canary_steps
from shipctl.release.target import Candidate, StaleEpochError
from shipctl.stages.base import Phase
from shipctl.stages.context import CheckContext, Objectives
from shipctl.stages.verdicts import Outcome, Verdict
from shipctl.testing import DelegatedConformance
from shipctl.testing.fixtures import FakeClock
from shipctl_plugins._engines.argo_status import RolloutStatus
from shipctl_plugins._engines.notes import EDITED, Notes
from shipctl_plugins._kubernetes.preflight import Preflighter
from shipctl_plugins._triton.golden import Tolerance
from shipctl_plugins.deploy.bluegreen import Bluegreen
from shipctl_plugins.deploy.canary import Canary
from shipctl_plugins.targets.argo_rollouts import ArgoRollouts, ArgoRolloutsOptions
from support_argo import Argo
from support_cluster import CLUSTER, ControlPlane, Kube
from support_rollout import pause, weight
from support_strategy import Release
from support_target import World

OLD, NEW = "a" * 64, "b" * 64
GATEWAY = support_kubernetes.GATEWAY
PROMETHEUS = {"uses": "prometheus", "with": {"url": "http://prometheus:9090", "preset": "error_rate"}}
ANALYSIS = AnalysisOptions.model_validate({"provider": PROMETHEUS, "interval": "30s"})
CANARY = Strategy(name="canary", steps=(weight(5), pause("1m"), weight(50), pause()), analysis=ANALYSIS)
BLUEGREEN = Strategy(name="bluegreen", preview=True, autoPromotion=False)
STEPS = [{"setWeight": 5}, {"pause": {"duration": "60s"}}, {"setWeight": 50}, {"pause": {"duration": "60s"}}]


class Quick(ArgoRollouts):
    """The target with a preflight that takes no time."""

    outcome: ClassVar[Outcome] = Outcome.PASS

    @cached_property
    def preflighter(self) -> Preflighter:
        def ask(
            candidate: Candidate, tolerance: Tolerance, timeout: float
        ) -> tuple[str, tuple[Verdict, ...]]:
            return "preflight", (Verdict(gate="preflight", outcome=self.outcome, message="golden samples"),)

        return ask


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    support_kubernetes.install(monkeypatch, **{"argo-rollouts": f"{__name__}:Quick"})


def options(**given: Any) -> ArgoRolloutsOptions:
    plain = {"name": "shop", "namespace": "models", "modelRepository": "s3://models/repositories"}
    return validated(ArgoRolloutsOptions, {**plain, **given}, "target")


def rendered(tmp_path: Path, strategy: Strategy, **given: Any) -> dict[str, Any]:
    """Return what a release puts there, by kind and name; nothing is asked."""
    context = support_kubernetes.context(
        tmp_path, objectives=Objectives(slo={"error_rate": 0.01, "latency.p95": 0.1})
    )
    target = ArgoRollouts(options(**given), context)
    files = target.manifests(support_kubernetes.candidate(tmp_path, "2.0.0", NEW), strategy)
    found = [yaml.safe_load(text) for text in files.values()]
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in found}


# -- what is rendered ----------------------------------------------------------------------------------------


def test_a_canary_has_our_steps_with_a_gate_before_each_weight_is_left(tmp_path: Path) -> None:
    spec = rendered(tmp_path, CANARY)["Rollout/shop"]["spec"]
    gate = {"analysis": {"templates": [{"templateName": "shop-gate"}]}}
    assert spec["strategy"]["canary"] == {
        "maxSurge": "25%",
        "maxUnavailable": 0,
        "steps": [
            {"setWeight": 5},
            {"pause": {"duration": "60s"}},
            gate,
            {"setWeight": 50},
            gate,
            {"pause": {}},
        ],
        "analysis": {"templates": [{"templateName": "shop-slo"}], "startingStep": 1},
    }
    assert (spec["progressDeadlineSeconds"], spec["progressDeadlineAbort"]) == (600, True)
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    (container,) = spec["template"]["spec"]["containers"]
    assert any(flag.startswith("--model-repository=s3://models/repositories/") for flag in container["args"])


def test_the_analysis_asks_prometheus_for_the_bounds_of_the_slo(tmp_path: Path) -> None:
    found = rendered(tmp_path, CANARY, prometheus="http://prometheus.monitoring:9090")
    (metric,) = found["AnalysisTemplate/shop-slo"]["spec"]["metrics"]
    assert (metric["name"], metric["interval"], metric["failureLimit"], metric["inconclusiveLimit"]) == (
        "error_rate", "30s", 0, 8,
    )  # fmt: skip
    assert metric["successCondition"] == "len(result) > 0 && result[0] <= 0.01"
    assert metric["failureCondition"] == "len(result) > 0 && (result[0] > 0.01)"
    asked = metric["provider"]["prometheus"]
    assert asked["address"] == "http://prometheus.monitoring:9090"
    assert f'shipctl_dev_revision="{NEW[:10]}"' in asked["query"]
    assert asked["query"].endswith(">= 50)"), "minSamples is not asked for"
    (gate,) = found["AnalysisTemplate/shop-gate"]["spec"]["metrics"]
    assert (gate["count"], gate["failureLimit"], gate["inconclusiveLimit"]) == (1, 0, 0)
    assert "[60000ms]" in gate["provider"]["prometheus"]["query"], "it does not look back over the pause"


def test_further_metrics_have_both_bounds(tmp_path: Path) -> None:
    query = {"uses": "prometheus", "with": {"url": "http://other:9090", "query": "sum(x{m='{{ model }}'})"}}
    metric = {"name": "load", "provider": query, "min": 1, "max": 2.5}
    analysis = AnalysisOptions.model_validate({"provider": PROMETHEUS, "metrics": [metric]})
    found = rendered(tmp_path, CANARY.model_copy(update={"analysis": analysis}))
    load = found["AnalysisTemplate/shop-slo"]["spec"]["metrics"][1]
    assert load["successCondition"] == "len(result) > 0 && result[0] >= 1.0 && result[0] <= 2.5"
    assert load["failureCondition"] == "len(result) > 0 && (result[0] < 1.0 || result[0] > 2.5)"
    assert load["provider"]["prometheus"] == {"address": "http://other:9090", "query": "sum(x{m='digits'})"}


def test_with_a_gateway_argo_moves_the_weights_of_our_route(tmp_path: Path) -> None:
    found = rendered(tmp_path, CANARY, router=GATEWAY)
    canary = found["Rollout/shop"]["spec"]["strategy"]["canary"]
    assert canary["trafficRouting"] == {
        "plugins": {"argoproj-labs/gatewayAPI": {"httpRoute": "shop", "namespace": "models"}}
    }
    assert (canary["stableService"], canary["canaryService"]) == ("shop-stable", "shop-canary")
    assert {"Service/shop-stable", "Service/shop-canary"} <= found.keys()
    (rule,) = found["HTTPRoute/shop"]["spec"]["rules"]
    assert [(each["name"], each["weight"]) for each in rule["backendRefs"]] == [
        ("shop-stable", 100),
        ("shop-canary", 0),
    ]


def test_with_istio_argo_is_told_every_route_of_the_virtual_service(tmp_path: Path) -> None:
    found = rendered(tmp_path, CANARY, router="istio")
    names = [rule["name"] for rule in found["VirtualService/shop"]["spec"]["http"]]
    routing = found["Rollout/shop"]["spec"]["strategy"]["canary"]["trafficRouting"]
    assert routing == {"istio": {"virtualService": {"name": "shop", "routes": names}}}
    hosts = {
        to["destination"]["host"]
        for rule in found["VirtualService/shop"]["spec"]["http"]
        for to in rule["route"]
    }
    assert hosts == {"shop-stable", "shop-canary"}


def test_bluegreen_has_two_services_and_waits_for_an_approval(tmp_path: Path) -> None:
    found = rendered(tmp_path, BLUEGREEN.model_copy(update={"analysis": ANALYSIS}))
    assert found["Rollout/shop"]["spec"]["strategy"]["blueGreen"] == {
        "activeService": "shop", "previewService": "shop-preview", "autoPromotionEnabled": False,
        "scaleDownDelaySeconds": 90, "abortScaleDownDelaySeconds": 1,
        "postPromotionAnalysis": {"templates": [{"templateName": "shop-gate"}]},
    }  # fmt: skip
    assert {"Service/shop", "Service/shop-preview"} <= found.keys()


def test_there_is_one_budget_and_one_autoscaler_for_all_revisions(tmp_path: Path) -> None:
    found = rendered(tmp_path, BLUEGREEN, router=GATEWAY, autoscaling={"engine": "hpa"})
    assert found["PodDisruptionBudget/shop"]["spec"]["selector"]["matchLabels"] == {
        "app.kubernetes.io/instance": "shop", "app.kubernetes.io/component": "server",
    }  # fmt: skip
    target = found["HorizontalPodAutoscaler/shop"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Rollout", "shop")
    assert "replicas" not in found["Rollout/shop"]["spec"]
    assert not any(name.startswith("Deployment/") for name in found)


REFUSED = [
    (Strategy(name="shadow", mirror=10.0), {}, "cannot do shadow, which ends by statistics of shipctl's own"),
    (CANARY, {"router": "service"}, "knows no router service; choose gateway-api, istio or replicas"),
    (
        CANARY.model_copy(update={"analysis": AnalysisOptions()}),
        {},
        "asks Prometheus alone, and analysis.provider is access-log; write `{uses: prometheus, with: …}`",
    ),
]


@pytest.mark.parametrize(("strategy", "given", "message"), REFUSED)
def test_what_argo_cannot_do_is_said_in_one_line(
    strategy: Strategy, given: dict[str, Any], message: str
) -> None:
    said = ArgoRollouts.supports(strategy, options(**given))
    assert said is not None
    assert message in said


def test_the_plan_says_what_few_pods_make_of_a_weight() -> None:
    lines = ArgoRollouts.not_enforced(CANARY, options())
    assert "weights are shares of pods: 5 % of 2 pods come to about 50 %" in lines
    assert not any(
        line.startswith("weights are shares")
        for line in ArgoRollouts.not_enforced(CANARY, options(router=GATEWAY))
    )


def test_a_pause_ends_when_argo_says() -> None:
    spec = {
        "template": {},
        "strategy": {"canary": {"steps": [{"setWeight": 5}, {"pause": {"duration": "90s"}}]}},
    }
    begun = [{"reason": "CanaryPauseStep", "startTime": "2026-01-01T00:00:00Z"}]
    status = {
        "observedGeneration": "3", "phase": "Paused", "message": "CanaryPauseStep", "currentStepIndex": 1,
        "controllerPause": True, "pauseConditions": begun,
    }  # fmt: skip
    found = {"metadata": {"generation": 3}, "spec": spec, "status": status}
    seen = RolloutStatus(found, Notes()).followed(EDITED)
    assert (seen.standing, seen.until, seen.asks) == (Standing.PAUSED, 1767225600.0 + 90, "")
    assert seen.message == "step 2 of 2, CanaryPauseStep"


# -- on the control plane ------------------------------------------------------------------------------------


@pytest.fixture
def argo(kube: Kube, namespace: str) -> Argo:
    """Argo's controller, played by the test."""
    return Argo(kube, namespace)


Start = Callable[..., Release]


@pytest.fixture
def start(tmp_path: Path, control_plane: ControlPlane, namespace: str) -> Start:
    """Return a function that begins a release on the cluster."""
    clock = FakeClock()

    def begin(
        cls: type[StrategyStage[Any]],
        version: str = "2.0.0",
        revision: str = NEW,
        *,
        router: Any = "replicas",
        **given: Any,
    ) -> Release:
        where = {
            "kubeconfig": str(control_plane.kubeconfig), "namespace": namespace, "name": "shop", "router": router,
            "modelRepository": "s3://models/repositories",
        }  # fmt: skip
        target = {"uses": "argo-rollouts", "with": where}
        stage = cls(cls.options_model.model_validate({"target": target, "analysis": None, **given}))
        candidate = support_kubernetes.candidate(tmp_path, version, revision)
        inputs = StrategyInputs(repository=candidate.repository, golden=candidate.golden)
        approved: set[str] = set()
        context = support_kubernetes.context(
            tmp_path, revision, version=version, now=clock, approved=lambda: frozenset(approved)
        )
        return Release(stage, inputs, context, clock, approved, World())

    return begin


@pytest.fixture
def serving(start: Start, argo: Argo) -> Release:
    """Version 1.0.0 serves."""
    release = start(Canary, "1.0.0", OLD, steps=STEPS, scaleDownDelay="0s")
    drive(release, argo, argo.finish)
    assert release.steps[-1].phase is Phase.DONE, release.steps[-3:]
    return release


def drive(release: Release, argo: Argo, *moves: Callable[[], Any], until: Phase | None = None) -> None:
    """Take steps; between them Argo makes one move after the other, and then what it is told."""
    left = list(moves)
    for _ in range(60):
        step = release.step()
        if step.phase.is_final or step.phase is until or (step.phase is Phase.PAUSED and step.asks):
            return
        release.clock.advance(step.requeue)
        if argo.there() and step.phase not in {Phase.PREFLIGHT, Phase.PREPARING}:
            (left.pop(0) if left and step.phase is not Phase.ABORTING else argo.go_on)()
    raise AssertionError([step.message for step in release.steps[-4:]])


@CLUSTER
def test_a_version_goes_through(serving: Release, start: Start, argo: Argo) -> None:
    release = start(Canary, steps=STEPS, scaleDownDelay="2s")
    drive(release, argo, lambda: argo.reach(0), lambda: argo.reach(1), lambda: argo.reach(3), argo.finish)
    assert release.steps[-1].phase is Phase.DONE, release.steps[-3:]
    said = [step.message for step in release.steps]
    assert any("step 2 of 4, CanaryPauseStep" in message for message in said), said
    (serves,) = release.stage.status(release.context)
    assert (serves.version, serves.healthy) == ("2.0.0", True)
    assert release.stage.in_place(release.inputs, release.context)


@CLUSTER
@pytest.mark.parametrize("router", ["replicas", GATEWAY], ids=["replicas", "gateway-api"])
def test_a_metric_that_fails_takes_it_back_for_good(start: Start, argo: Argo, router: Any) -> None:
    first = start(Canary, "1.0.0", OLD, steps=STEPS, scaleDownDelay="0s", router=router)
    drive(first, argo, argo.finish)
    release = start(Canary, steps=STEPS, router=router)
    before = argo.rollout()["spec"]["template"]
    why = 'RolloutAborted: Rollout aborted update to revision 2: Metric "error_rate" assessed Failed'
    drive(release, argo, lambda: argo.reach(1), lambda: argo.give_up(why))
    assert release.steps[-1].phase is Phase.ROLLED_BACK, release.steps[-3:]
    assert any(step.message.endswith(why) for step in release.steps)
    assert argo.rollout()["spec"]["template"] == before, "a retry would bring it back"
    assert [item.version for item in release.stage.status(release.context)] == ["1.0.0"]


@CLUSTER
def test_an_approval_promotes_as_kubectl_does(serving: Release, start: Start, argo: Argo) -> None:
    release = start(Canary, steps=[{"setWeight": 50}, {"pause": {}}], scaleDownDelay="0s")
    drive(release, argo, lambda: argo.reach(1))
    assert release.steps[-1].asks == "step 1"
    assert argo.status["pauseConditions"], "nobody has approved it"
    release.stage = type(release.stage)(release.stage.options)  # another run, later
    release.clock.advance(3600)
    release.approved.add("step 1")
    assert release.step().message == "Rollout shop goes on"
    assert not argo.status.get("pauseConditions")
    drive(release, argo)
    assert release.steps[-1].phase is Phase.DONE, release.steps[-3:]


@CLUSTER
def test_bluegreen_waits_for_its_promotion(start: Start, argo: Argo) -> None:
    first = start(Bluegreen, "1.0.0", OLD, scaleDownDelay="0s")
    drive(first, argo, argo.finish)
    release = start(Bluegreen, autoPromotion=False, scaleDownDelay="0s")
    drive(release, argo, lambda: argo.pause("BlueGreenPause"))
    assert release.steps[-1].asks == "promote"
    assert argo.status["blueGreen"]["activeSelector"] == argo.status["stableRS"]
    release.approved.add("promote")
    drive(release, argo)
    assert release.steps[-1].phase is Phase.DONE, release.steps[-3:]


@CLUSTER
def test_an_abort_of_ours_goes_back(serving: Release, start: Start, argo: Argo) -> None:
    release = start(Canary, steps=STEPS)
    drive(release, argo, lambda: argo.reach(1), until=Phase.ANALYSING)
    release.context = replace(release.context, aborted=lambda: "enough")
    drive(release, argo)
    assert release.steps[-1].phase is Phase.ROLLED_BACK, release.steps[-3:]
    said = [step.message for step in release.steps]
    assert "Rollout shop is aborted" in said
    assert f"Rollout shop has the pod template of 1.0.0 ({OLD[:12]}) again" in said


@CLUSTER
def test_an_abort_by_kubectl_is_an_abort(
    serving: Release, start: Start, argo: Argo, kube: Kube, namespace: str
) -> None:
    release = start(Canary, steps=STEPS)
    drive(release, argo, lambda: argo.reach(1), until=Phase.ANALYSING)
    kube.patch("Rollout", "shop", namespace, {"status": {"abort": True}}, subresource="status")
    drive(release, argo)
    assert release.steps[-1].phase is Phase.ROLLED_BACK, release.steps[-3:]
    assert argo.status["phase"] == "Healthy"


@CLUSTER
def test_an_undo_by_kubectl_is_an_abort_and_the_next_release_goes_on(
    serving: Release, start: Start, argo: Argo, kube: Kube, namespace: str
) -> None:
    before = argo.rollout()["spec"]["template"]
    release = start(Canary, steps=STEPS)
    drive(release, argo, lambda: argo.reach(1), until=Phase.ANALYSING)
    kube.patch("Rollout", "shop", namespace, {"spec": {"template": before}}, manager="kubectl-argo-rollouts")
    argo.observe()
    drive(release, argo)
    assert release.steps[-1].phase is Phase.ROLLED_BACK, release.steps[-3:]
    assert any(f"somebody else has put {OLD[:12]} back" in step.message for step in release.steps)
    third = start(Canary, "3.0.0", "c" * 64, steps=STEPS, scaleDownDelay="0s")
    drive(third, argo, argo.finish)
    assert third.steps[-1].phase is Phase.DONE, third.steps[-3:]


@CLUSTER
def test_what_somebody_else_applies_is_left_alone(
    serving: Release, start: Start, argo: Argo, kube: Kube, namespace: str
) -> None:
    release = start(Canary, steps=STEPS)
    drive(release, argo, lambda: argo.reach(1), until=Phase.ANALYSING)
    template = argo.rollout()["spec"]["template"]
    template["spec"]["containers"][0]["image"] = "somebody/else:1"
    kube.patch("Rollout", "shop", namespace, {"spec": {"template": template}}, manager="kubectl")
    with pytest.raises(StaleEpochError, match="somebody else has applied an edit of its pod template"):
        release.stage.step(release.state, release.inputs, release.context)
    image = argo.rollout()["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == "somebody/else:1"


@CLUSTER
def test_it_is_gone_on_with_wherever_it_is_killed(serving: Release, start: Start, argo: Argo) -> None:
    release = start(Canary, steps=STEPS, scaleDownDelay="1s")
    moves = [lambda: argo.reach(1), lambda: argo.reach(3), argo.finish]
    for _ in range(40):
        release.stage = type(release.stage)(release.stage.options)
        before = release.state
        step = release.step()
        if step.phase.is_final:
            break
        release.state = before  # the act was done, and its record lost
        release.stage = type(release.stage)(release.stage.options)
        release.step()
        release.clock.advance(step.requeue)
        if step.phase in {Phase.SHIFTING, Phase.ANALYSING} and moves:
            moves.pop(0)()
    assert release.steps[-1].phase is Phase.DONE, release.steps[-3:]
    assert argo.rollout()["metadata"]["generation"] == 2, "it was handed over more than once"


@CLUSTER
def test_what_is_promoted_and_bad_is_taken_back_without_steps(
    serving: Release, start: Start, argo: Argo
) -> None:
    release = start(Canary, steps=STEPS, scaleDownDelay="60s")
    drive(release, argo, argo.finish, until=Phase.WATCHING)
    release.context = replace(release.context, aborted=lambda: "slow")
    drive(release, argo, until=Phase.ABORTING)
    release.step()
    assert "steps" not in argo.rollout()["spec"]["strategy"]["canary"]
    argo.observe()
    argo.finish()
    drive(release, argo)
    assert release.steps[-1].phase is Phase.ROLLED_BACK, release.steps[-3:]
    assert [item.version for item in release.stage.status(release.context)] == ["1.0.0"]


@CLUSTER
def test_weights_that_argo_has_set_survive_the_next_release(
    start: Start, argo: Argo, kube: Kube, namespace: str
) -> None:
    first = start(Canary, "1.0.0", OLD, steps=STEPS, scaleDownDelay="0s", router=GATEWAY)
    drive(first, argo, argo.finish)
    rules = kube.get("HTTPRoute", "shop", namespace)["spec"]["rules"]
    rules[0]["backendRefs"][0]["weight"], rules[0]["backendRefs"][1]["weight"] = 95, 5
    kube.patch("HTTPRoute", "shop", namespace, {"spec": {"rules": rules}}, manager="rollouts-controller")
    release = start(Canary, steps=STEPS, router=GATEWAY)
    drive(release, argo, lambda: argo.reach(1), until=Phase.ANALYSING)
    after = kube.get("HTTPRoute", "shop", namespace)["spec"]["rules"][0]["backendRefs"]
    assert [each["weight"] for each in after] == [95, 5]
    assert "5 % of the requests" in release.steps[-1].message


@CLUSTER
def test_a_rollback_needs_no_steps(serving: Release, start: Start, argo: Argo) -> None:
    release = start(Canary, steps=STEPS, scaleDownDelay="0s")
    drive(release, argo, argo.finish)
    back = start(Canary, "1.0.0", OLD, steps=STEPS, scaleDownDelay="0s")
    back.context = replace(back.context, intent="rollback")
    drive(back, argo, argo.finish)
    assert back.steps[-1].phase is Phase.DONE, back.steps[-3:]
    assert "steps" not in argo.rollout()["spec"]["strategy"]["canary"]
    assert [item.version for item in back.stage.status(back.context)] == ["1.0.0"]


@CLUSTER
@pytest.mark.parametrize("router", ["replicas", GATEWAY], ids=["replicas", "gateway-api"])
def test_a_diff_shows_what_a_release_changes_and_nothing_else(start: Start, argo: Argo, router: Any) -> None:
    first = start(Canary, "1.0.0", OLD, steps=STEPS, scaleDownDelay="0s", router=router)
    assert any(line.startswith("+kind: Rollout") for line in first.stage.diff(first.inputs, first.context))
    drive(first, argo, argo.finish)
    assert list(first.stage.diff(first.inputs, first.context)) == []
    release = start(Canary, steps=STEPS, router=router)
    changes = [line for line in release.stage.diff(release.inputs, release.context) if line[:1] in "+-"]
    files = {line.split(".Rollout.")[0] for line in changes if line.startswith("---")}
    assert files == {"--- live/argoproj.io.v1alpha1"}
    assert any(line[0] == "+" and release.inputs.repository.digest in line for line in changes)


@CLUSTER
def test_a_rollout_of_somebody_else_is_not_taken(
    control_plane: ControlPlane, namespace: str, kube: Kube, tmp_path: Path
) -> None:
    kube.create(
        {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "metadata": {"name": "shop"}, "spec": {}},
        namespace,
    )
    given = options(kubeconfig=str(control_plane.kubeconfig), namespace=namespace)
    target = Quick(given, support_kubernetes.context(tmp_path))
    with pytest.raises(StageError, match="Rollout shop is not shipctl's; remove it, or set another `name`"):
        target.submit(support_kubernetes.candidate(tmp_path, "1.0.0", OLD), CANARY)


@CLUSTER
def test_a_change_of_the_kind_of_strategy_is_refused(serving: Release, start: Start) -> None:
    release = start(Bluegreen)
    release.run(until=lambda step: step.phase is Phase.ABORTING)
    assert release.steps[-1].message.startswith("Rollout shop is no blueGreen so far")
    assert release.run().phase is Phase.ROLLED_BACK


@CLUSTER
def test_a_plan_asks_for_the_engine_and_for_the_rights(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    given = options(kubeconfig=str(control_plane.kubeconfig), namespace=namespace)
    ArgoRollouts.check(given, CheckContext(project=tmp_path, pipeline="digits", base=tmp_path))
    keda = options(
        kubeconfig=str(control_plane.kubeconfig), namespace=namespace, router="istio",
        autoscaling={"engine": "keda", "serverAddress": "http://prometheus:9090"},
    )  # fmt: skip
    with pytest.raises(SpecError, match="scales by `engine: hpa` alone"):
        ArgoRollouts.check(keda, CheckContext(project=tmp_path, pipeline="digits", base=tmp_path))


class Conformance(DelegatedConformance):
    """With one strategy."""

    name, plugin = "argo-rollouts", ArgoRollouts

    @pytest.fixture
    def target(
        self, tmp_path: Path, control_plane: ControlPlane, namespace: str, kube: Kube
    ) -> DelegatedTarget:
        self.argo = Argo(kube, namespace)
        given = options(kubeconfig=str(control_plane.kubeconfig), namespace=namespace)
        return Quick(given, support_kubernetes.context(tmp_path))

    @pytest.fixture
    def candidates(self, tmp_path: Path) -> tuple[Candidate, Candidate]:
        make = support_kubernetes.candidate
        return make(tmp_path, "1.0.0", OLD), make(tmp_path, "2.0.0", NEW)

    def finish(self, target: DelegatedTarget) -> None:
        self.argo.finish()

    def give_up(self, target: DelegatedTarget) -> None:
        self.argo.give_up("RolloutAborted: Rollout aborted update to revision 2")

    def go_back(self, target: DelegatedTarget) -> None:
        self.argo.go_on()
        if not self.argo.there():
            return
        status = self.argo.status
        if status["currentPodHash"] != status.get("stableRS") and not status.get("abort"):
            self.argo.finish()


@CLUSTER
class TestCanary(Conformance):
    """Steps."""

    strategy = Strategy(name="canary", steps=canary_steps("1m"))


@CLUSTER
class TestBluegreen(Conformance):
    """One step."""

    strategy = Strategy(name="bluegreen", preview=True)
