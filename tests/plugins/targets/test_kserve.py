"""The target `kserve` on a real control plane, where the tests play KServe's controller; and what it renders."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

import support_kubernetes
import support_target
from shipctl.errors import SpecError, StageError
from shipctl.release.delegated import DelegatedTarget, Standing
from shipctl.release.metrics import Samples
from shipctl.release.options import StrategyInputs
from shipctl.release.references import validated
from shipctl.release.stage import StrategyStage
from shipctl.release.strategy import Strategy, canary_steps
from shipctl.release.target import Candidate, StaleEpochError
from shipctl.stages.base import Phase
from shipctl.stages.context import CheckContext, Objectives
from shipctl.stages.verdicts import Outcome, Verdict
from shipctl.testing import DelegatedConformance
from shipctl.testing.fixtures import FakeClock
from shipctl_plugins._engines.kserve_service import strides
from shipctl_plugins._kubernetes.preflight import Preflighter
from shipctl_plugins._triton.golden import Tolerance
from shipctl_plugins.deploy.bluegreen import Bluegreen
from shipctl_plugins.deploy.canary import Canary
from shipctl_plugins.targets.kserve import Kserve, KserveOptions
from support_cluster import CLUSTER, ControlPlane, Kube
from support_kserve import KServe
from support_rollout import pause, weight
from support_strategy import Release
from support_target import World

OLD, NEW = "a" * 64, "b" * 64
STEPS = [{"setWeight": 5}, {"pause": {"duration": "30s"}}, {"setWeight": 50}, {"pause": {"duration": "30s"}}]


class Quick(Kserve):
    """The target with a preflight that takes no time."""

    @cached_property
    def preflighter(self) -> Preflighter:
        def ask(
            candidate: Candidate, tolerance: Tolerance, timeout: float
        ) -> tuple[str, tuple[Verdict, ...]]:
            return "preflight", (Verdict(gate="preflight", outcome=Outcome.PASS, message="golden samples"),)

        return ask


def options(**given: Any) -> KserveOptions:
    plain = {"name": "shop", "namespace": "models", "modelRepository": "s3://models/repositories"}
    return validated(KserveOptions, {**plain, **given}, "target")


# -- what is rendered ----------------------------------------------------------------------------------------


def test_the_predictor_reads_the_model_by_its_digest(tmp_path: Path) -> None:
    target = Kserve(
        options(credentialsSecret="keys", args=("--log-verbose=1",)), support_kubernetes.context(tmp_path)
    )
    candidate = support_kubernetes.candidate(tmp_path, "2.0.0", NEW)
    files = target.manifests(candidate, Strategy(name="canary", steps=canary_steps("1m")))
    found = yaml.safe_load(files["inferenceservice-shop.yaml"])
    predictor = found["spec"]["predictor"]
    assert predictor["canaryTrafficPercent"] == 5
    assert (predictor["minReplicas"], predictor["maxReplicas"], predictor["timeout"]) == (2, 2, 30)
    triton = predictor["triton"]
    assert triton["storageUri"] == f"s3://models/repositories/{candidate.repository.digest}"
    assert triton["args"] == ["--log-verbose=1"]
    assert triton["securityContext"]["runAsNonRoot"]
    assert not any(each["name"].startswith("AWS_") for each in triton["env"]), (
        "the store is the account's affair"
    )
    assert predictor["annotations"]["shipctl.dev/revision-digest"] == NEW
    assert found["metadata"]["annotations"] == {"serving.kserve.io/deploymentMode": "Serverless"}


def test_steps_become_shares_with_what_ends_each() -> None:
    plan = Strategy(name="canary", steps=(pause(), weight(5), weight(10), pause("1m"), pause()))
    found = [(each.weight, each.pause, each.asks) for each in strides(plan)]
    assert found == [(0, 0, "step 0"), (5, 0, ""), (10, 60, ""), (10, 0, "step 4"), (100, 0, "")]
    assert [each.asks for each in strides(Strategy(name="bluegreen", autoPromotion=False))] == ["promote", ""]
    assert [each.weight for each in strides(Strategy(name="canary"))] == [100]


def test_what_kserve_cannot_do_is_said_in_one_line() -> None:
    assert "cannot do shadow" in str(Kserve.supports(Strategy(name="shadow", mirror=10.0), None))
    assert "cannot do rolling" in str(Kserve.supports(Strategy(name="rolling"), None))
    assert Kserve.supports(Strategy(name="bluegreen", preview=True), None) == (
        "the target kserve has no preview door; write `previewService: false`"
    )


def test_options_of_what_kserve_brings_itself_are_refused(tmp_path: Path) -> None:
    given = options(router="istio", monitoring={})
    with pytest.raises(
        SpecError, match="router and monitoring would be of pods and Services that are KServe's here"
    ):
        Kserve.check(given, CheckContext(project=tmp_path, pipeline="digits", base=tmp_path))


# -- on the control plane ------------------------------------------------------------------------------------


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """What is true of requests; the metric provider `memory` tells it, whoever gets them."""
    world = support_target.install(monkeypatch)
    support_kubernetes.install(monkeypatch, kserve=f"{__name__}:Quick")

    def query(self: Any, revision: str, since: float, until: float) -> Samples:
        count = int((until - since) * world.rate)
        return Samples(
            revision=revision, since=since, until=until, requests=count,
            errors=int(count * world.errors.get(revision, 0.0)),
        )  # fmt: skip

    monkeypatch.setattr(support_target.MemoryMetrics, "query", query)
    return world


@pytest.fixture
def kserve(kube: Kube, namespace: str) -> KServe:
    """KServe's controller, played by the test."""
    return KServe(kube, namespace)


Start = Callable[..., Release]


@pytest.fixture
def start(tmp_path: Path, control_plane: ControlPlane, namespace: str, world: World) -> Start:
    """Return a function that begins a release on the cluster."""
    clock = FakeClock(time.time())

    def begin(
        cls: type[StrategyStage[Any]], version: str = "2.0.0", revision: str = NEW, **given: Any
    ) -> Release:
        where = {
            "kubeconfig": str(control_plane.kubeconfig), "namespace": namespace, "name": "shop",
            "modelRepository": "s3://models/repositories",
        }  # fmt: skip
        told = {"target": {"uses": "kserve", "with": where}, "analysis": None, **given}
        candidate = support_kubernetes.candidate(tmp_path, version, revision)
        approved: set[str] = set()
        context = support_kubernetes.context(
            tmp_path, revision, version=version, now=clock, approved=lambda: frozenset(approved),
            objectives=Objectives(slo={"error_rate": 0.01}),
        )  # fmt: skip
        inputs = StrategyInputs(repository=candidate.repository, golden=candidate.golden)
        return Release(cls(cls.options_model.model_validate(told)), inputs, context, clock, approved, world)

    return begin


@pytest.fixture
def serving(start: Start, kserve: KServe) -> Release:
    """Version 1.0.0 serves."""
    release = start(Canary, "1.0.0", OLD, steps=STEPS, scaleDownDelay="0s")
    drive(release, kserve)
    assert release.steps[-1].phase is Phase.DONE, release.steps[-3:]
    return release


def drive(release: Release, kserve: KServe, until: Callable[[], bool] = lambda: False) -> None:
    """Take steps, and let KServe do what it is told in between."""
    for _ in range(150):
        step = release.step()
        if step.phase.is_final or (step.phase is Phase.PAUSED and step.asks):
            return
        kserve.go_on()
        if until():
            return
        release.clock.advance(step.requeue * 5)
    raise AssertionError([step.message for step in release.steps[-4:]])


@CLUSTER
def test_a_version_gets_its_shares_one_after_the_other(
    serving: Release, start: Start, kserve: KServe
) -> None:
    release = start(Canary, steps=STEPS, scaleDownDelay="2s")
    drive(release, kserve)
    assert release.steps[-1].phase is Phase.DONE, release.steps[-3:]
    said = [step.message for step in release.steps]
    handed = "2.0.0 is handed over to InferenceService shop, with 5 %"
    order = [handed, "2.0.0 gets 50 % of the requests", "2.0.0 gets 100 % of the requests"]
    assert [message for message in said if message in order] == order
    assert kserve.percent == 100
    (serves,) = release.stage.status(release.context)
    assert (serves.version, serves.healthy, serves.endpoints["http"]) == (
        "2.0.0",
        True,
        "http://shop.example.com",
    )
    assert release.stage.in_place(release.inputs, release.context)


@CLUSTER
def test_each_share_lasts_as_long_as_it_says_and_until_a_measurement_passes(
    serving: Release, start: Start, kserve: KServe, world: World
) -> None:
    world.rate = 0  # nobody asks: nothing can be concluded
    release = start(Canary, steps=STEPS, analysis={"provider": "memory", "interval": "10s", "compare": False})
    began = release.clock()
    drive(release, kserve, until=lambda: release.clock() - began > 100)
    assert kserve.percent == 5, "it went on without a measurement"
    world.rate = 200
    drive(release, kserve, until=lambda: kserve.percent == 50)
    assert any(step.verdicts for step in release.steps)


@CLUSTER
def test_errors_of_the_canary_take_it_back(
    serving: Release, start: Start, kserve: KServe, world: World
) -> None:
    release = start(Canary, steps=STEPS, analysis={"provider": "memory", "interval": "10s"})
    before = dict(kserve.service()["spec"]["predictor"])
    world.errors[NEW] = 0.5
    drive(release, kserve)
    assert release.steps[-1].phase is Phase.ROLLED_BACK, release.steps[-3:]
    assert kserve.service()["spec"]["predictor"] == before, "a later apply would bring it back"
    assert kserve.traffic() == {"shop-predictor-00003": 100}
    assert [item.version for item in release.stage.status(release.context)] == ["1.0.0"]


@CLUSTER
def test_a_model_that_does_not_load_never_gets_a_request(
    serving: Release, start: Start, kserve: KServe
) -> None:
    release = start(Canary, steps=STEPS)
    release.run(until=lambda step: step.phase is Phase.SHIFTING)
    kserve.fail("no such file: model.onnx")
    assert kserve.traffic() == {"shop-predictor-00001": 100}
    step = release.step()
    assert step.phase is Phase.ABORTING
    assert step.message.endswith("BlockedByFailedLoad: no such file: model.onnx")
    kserve.recover()
    drive(release, kserve)
    assert release.steps[-1].phase is Phase.ROLLED_BACK, release.steps[-3:]


@CLUSTER
def test_an_approval_is_waited_for_and_given(serving: Release, start: Start, kserve: KServe) -> None:
    release = start(Canary, steps=[{"setWeight": 50}, {"pause": {}}], scaleDownDelay="0s")
    drive(release, kserve)
    assert release.steps[-1].asks == "step 1"
    assert sorted(kserve.traffic().values()) == [50, 50]
    release.stage = type(release.stage)(release.stage.options)
    release.clock.advance(24 * 3600)
    release.approved.add("step 1")
    drive(release, kserve)
    assert release.steps[-1].phase is Phase.DONE, release.steps[-3:]


@CLUSTER
def test_bluegreen_asks_before_it_takes_over(serving: Release, start: Start, kserve: KServe) -> None:
    release = start(Bluegreen, previewService=False, autoPromotion=False, scaleDownDelay="0s")
    drive(release, kserve)
    assert release.steps[-1].asks == "promote"
    assert kserve.traffic() == {"shop-predictor-00001": 100}
    release.approved.add("promote")
    drive(release, kserve)
    assert kserve.traffic() == {"shop-predictor-00002": 100}


@CLUSTER
@pytest.mark.parametrize("after", range(2, 9))
def test_it_can_be_aborted_at_every_step(serving: Release, start: Start, kserve: KServe, after: int) -> None:
    release = start(Canary, steps=STEPS)
    for _ in range(after):
        step = release.step()
        kserve.go_on()
        release.clock.advance(max(step.requeue, 10))
    release.context = replace(release.context, aborted=lambda: "enough")
    drive(release, kserve)
    assert release.steps[-1].phase in {Phase.ROLLED_BACK, Phase.REJECTED}, release.steps[-3:]
    (serves,) = release.stage.status(release.context)
    assert (serves.version, serves.healthy) == ("1.0.0", True)


@CLUSTER
def test_what_is_promoted_and_bad_goes_back_at_once(
    serving: Release, start: Start, kserve: KServe, world: World
) -> None:
    release = start(
        Canary, steps=STEPS, scaleDownDelay="60s", analysis={"provider": "memory", "interval": "10s"}
    )
    drive(release, kserve, until=lambda: kserve.traffic() == {"shop-predictor-00002": 100})
    world.errors[NEW] = 1.0
    drive(release, kserve, until=lambda: kserve.percent == 0)
    assert kserve.traffic() == {"shop-predictor-00001": 100}, "it waits for new pods"
    drive(release, kserve)
    assert release.steps[-1].phase is Phase.ROLLED_BACK, release.steps[-3:]
    assert [item.version for item in release.stage.status(release.context)] == ["1.0.0"]


@CLUSTER
def test_it_is_gone_on_with_wherever_it_is_killed(serving: Release, start: Start, kserve: KServe) -> None:
    release = start(Canary, steps=STEPS, scaleDownDelay="1s")
    shares = []
    for _ in range(80):
        before = release.state
        step = release.step()
        if step.phase.is_final:
            break
        release.state = before  # the act was done, and its record lost
        release.stage = type(release.stage)(release.stage.options)
        release.step()
        kserve.go_on()
        shares += [kserve.percent] if kserve.percent not in shares else []
        release.clock.advance(max(step.requeue, 3))
    assert release.steps[-1].phase is Phase.DONE, release.steps[-3:]
    assert shares == [100, 5, 50]
    assert kserve.count == 2, "it was handed over more than once"


@CLUSTER
def test_what_somebody_else_applies_is_left_alone(
    serving: Release, start: Start, kserve: KServe, kube: Kube, namespace: str
) -> None:
    release = start(Canary, steps=STEPS)
    drive(release, kserve, until=lambda: kserve.percent == 5)
    release.step()
    predictor = {"spec": {"predictor": {"triton": {"storageUri": "s3://somewhere/else"}}}}
    kube.patch("InferenceService", "shop", namespace, predictor, manager="kubectl")
    with pytest.raises(StaleEpochError, match="somebody else has applied an edit of its pod template"):
        release.stage.step(release.state, release.inputs, release.context)
    assert kserve.service()["spec"]["predictor"]["triton"]["storageUri"] == "s3://somewhere/else"


@CLUSTER
def test_a_share_of_zero_by_kubectl_is_noticed(
    serving: Release, start: Start, kserve: KServe, kube: Kube, namespace: str
) -> None:
    release = start(Canary, steps=STEPS, progressDeadline="60s")
    drive(release, kserve, until=lambda: kserve.percent == 5)
    share = {"spec": {"predictor": {"canaryTrafficPercent": 0}}}
    kube.patch("InferenceService", "shop", namespace, share, manager="kubectl")
    kserve.go_on()
    seen = Quick(_options_of(release), release.context).follow(NEW)
    assert (seen.standing, seen.weight) == (Standing.DEGRADED, 0)
    drive(release, kserve)
    assert release.steps[-1].phase is Phase.ROLLED_BACK, release.steps[-3:]


@CLUSTER
def test_another_mode_of_kserve_is_said_to_divide_nothing(
    serving: Release, start: Start, kserve: KServe, kube: Kube, namespace: str
) -> None:
    release = start(Canary, steps=STEPS)
    release.run(until=lambda step: step.phase is Phase.SHIFTING)
    raw = {"metadata": {"annotations": {"serving.kserve.io/deploymentMode": "RawDeployment"}}}
    kube.patch("InferenceService", "shop", namespace, raw, manager="kubectl")
    assert "its mode RawDeployment divides no requests; it has to be Serverless" in release.step().message


@CLUSTER
def test_a_service_of_somebody_else_is_not_taken(
    control_plane: ControlPlane, namespace: str, kube: Kube, tmp_path: Path
) -> None:
    theirs = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "shop"},
    }
    kube.create({**theirs, "spec": {"predictor": {}}}, namespace)
    given = options(kubeconfig=str(control_plane.kubeconfig), namespace=namespace)
    target = Quick(given, support_kubernetes.context(tmp_path))
    with pytest.raises(StageError, match="InferenceService shop is not shipctl's"):
        target.submit(support_kubernetes.candidate(tmp_path, "1.0.0", OLD), Strategy(name="canary"))


def _options_of(release: Release) -> KserveOptions:
    return validated(KserveOptions, release.stage.options.target.options, "target")


@CLUSTER
class TestKserve(DelegatedConformance):
    """The kit."""

    name, plugin = "kserve", Kserve

    @pytest.fixture
    def target(
        self, tmp_path: Path, control_plane: ControlPlane, namespace: str, kube: Kube
    ) -> DelegatedTarget:
        self.kserve = KServe(kube, namespace)
        given = options(kubeconfig=str(control_plane.kubeconfig), namespace=namespace)
        return Quick(given, support_kubernetes.context(tmp_path))

    @pytest.fixture
    def candidates(self, tmp_path: Path) -> tuple[Candidate, Candidate]:
        make = support_kubernetes.candidate
        return make(tmp_path, "1.0.0", OLD), make(tmp_path, "2.0.0", NEW)

    def finish(self, target: DelegatedTarget) -> None:
        for _ in range(8):
            self.kserve.go_on()
            revision = target.follow("").current
            assert revision is not None
            target.resume(revision)

    def give_up(self, target: DelegatedTarget) -> None:
        self.kserve.fail("out of memory")

    def go_back(self, target: DelegatedTarget) -> None:
        self.kserve.recover()
        self.kserve.go_on()
