"""Autoscaling by how long requests wait in Triton.

Triton counts what requests waited for their turn, in microseconds, and the requests (`nv_inference_queue_duration_us`
and `nv_inference_request_success`, docs/user_guide/metrics.md of Triton). The mean of both over two minutes is what
pods are added by: it grows as soon as the instances of a model cannot keep up, whatever the model's own time is.
"""

from __future__ import annotations

from typing import Any

from shipctl.spec.units import Duration
from shipctl_plugins._kubernetes.app import App

METRIC = "triton_queue_seconds"
"""The pods' metric that a HorizontalPodAutoscaler asks for."""
_WINDOW = "2m"
_SLOWEST = "0.001"
"""Requests per second below which the mean is taken for nothing, so that an idle pod is no division by 0."""


def mean_queue(selector: str, by: str = "") -> str:
    """Return the PromQL of the mean seconds that requests wait; ``selector`` has the labels of the series."""
    waited, answered = (
        f"sum(rate({name}{{{selector}}}[{_WINDOW}])){by}"
        for name in ("nv_inference_queue_duration_us", "nv_inference_request_success")
    )
    return f"{waited} / clamp_min({answered}, {_SLOWEST}) / 1e6"


def revision_query(app: App, revision: str) -> str:
    """Return what KEDA asks about one revision; every usual scrape configuration writes these two labels."""
    return mean_queue(f'namespace="{app.namespace}",pod=~"{app.of(revision)}-.+"')


def adapter_rule() -> dict[str, Any]:
    """Return the rule by which the Prometheus adapter makes :data:`METRIC` of Triton's counters (below `rules:`).

    The form is that of github.com/kubernetes-sigs/prometheus-adapter, docs/config.md.
    """
    return {
        "seriesQuery": 'nv_inference_queue_duration_us{namespace!="",pod!=""}',
        "resources": {"overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}},
        "name": {"as": METRIC},
        "metricsQuery": mean_queue("<<.LabelMatchers>>", " by (<<.GroupBy>>)"),
    }


def quantity(seconds: Duration) -> str:
    """Return a time as a quantity of Kubernetes: in milliseconds, or microseconds where that takes it."""
    micro = round(float(seconds) * 1e6)
    if micro % 1000:
        return f"{micro}u"
    return f"{micro // 1000}m" if micro % 1_000_000 else str(micro // 1_000_000)


def behavior() -> dict[str, Any]:
    """Return how fast pods come and go: twice as many within a minute, and no fewer before five quiet ones."""
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "policies": [{"type": "Percent", "value": 100, "periodSeconds": 60}],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": 300,
            "policies": [{"type": "Percent", "value": 25, "periodSeconds": 60}],
        },
    }
