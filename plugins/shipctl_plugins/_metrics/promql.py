"""PromQL for what Triton and Envoy export, and the filling in of its placeholders.

Durations in Triton's counters are microseconds, in its histograms and in Envoy's milliseconds; queries give seconds.
Names and labels: Triton's metrics.md of the versions named; Envoy's statistics of a cluster as its admin endpoint
`/stats/prometheus` shows them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shipctl.spec.fields import fault
from shipctl.spec.problems import near

NAMES = ("model", "version", "revision", "window", "pipeline", "since", "until", "quantile", "labels")
"""What `{{ … }}` in a query can name."""
_PLACEHOLDER = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
_TRITON = '{model="{{ model }}",version="{{ version }}"{{ labels }}}'
_SUCCESS = f"nv_inference_request_success{_TRITON}"
_FAILURE = f"nv_inference_request_failure{_TRITON}"
_DONE, _FAILED = (
    f"sum(increase({_SUCCESS}[{{{{ window }}}}]))",
    f"sum(increase({_FAILURE}[{{{{ window }}}}]))",
)


def _mean(metric: str) -> str:
    return f"sum(increase({metric}{_TRITON}[{{{{ window }}}}])) / {_DONE} / 1e6"


def _quantile(metric: str, selector: str) -> str:
    return f"histogram_quantile({{{{ quantile }}}}, sum by (le) (rate({metric}{selector}[{{{{ window }}}}]))) / 1e3"


@dataclass(frozen=True)
class Preset:
    """One number that is often asked for."""

    value: str
    """Gives the number in base units."""
    series: str
    """What has to be scraped for it: how much of the window is covered is told from this."""
    requests: str | None = None
    errors: str | None = None
    since: tuple[int, int] = (2, 0)
    """The first version of Triton's server that exports it."""
    flag: str = ""
    """What the server needs to be told to export it."""


_ENVOY = '{envoy_cluster_name="{{ cluster }}"{{ labels }}}'
PRESETS: Mapping[str, Preset] = {
    "error_rate": Preset(
        value=f"{_FAILED} / ({_DONE} + {_FAILED})",
        series=_SUCCESS,
        requests=f"{_DONE} + {_FAILED}",
        errors=_FAILED,
    ),
    "latency_mean": Preset(
        value=_mean("nv_inference_request_duration_us"),
        series=_SUCCESS,
        requests=f"{_DONE} + {_FAILED}",
        errors=_FAILED,
    ),
    "queue_time": Preset(
        value=_mean("nv_inference_queue_duration_us"),
        series=_SUCCESS,
        requests=f"{_DONE} + {_FAILED}",
        errors=_FAILED,
    ),
    "first_response": Preset(
        value=_quantile("nv_inference_first_response_histogram_ms_bucket", _TRITON),
        series=_SUCCESS,
        requests=f"{_DONE} + {_FAILED}",
        errors=_FAILED,
        since=(2, 53),
        flag="--metrics-config histogram_latencies=true",
    ),
    "envoy_latency": Preset(
        value=_quantile("envoy_cluster_upstream_rq_time_bucket", _ENVOY),
        series=f"envoy_cluster_upstream_rq_completed{_ENVOY}",
        requests=f"sum(increase(envoy_cluster_upstream_rq_completed{_ENVOY}[{{{{ window }}}}]))",
        errors=(
            f'sum(increase(envoy_cluster_upstream_rq_xx{{envoy_response_code_class="5",{_ENVOY[1:]}'
            "[{{ window }}])) or vector(0)"
        ),
    ),
}
"""By the name that a spec gives."""


def render(template: str, values: Mapping[str, str]) -> str:
    """Return a query with its placeholders filled in."""
    return _PLACEHOLDER.sub(lambda found: values[found[1]], template)


def placeholders(template: str) -> list[str]:
    """Return what a query names between `{{` and `}}`."""
    return [found[1] for found in _PLACEHOLDER.finditer(template)]


def known(template: str, names: Iterable[str] = NAMES) -> str:
    """Return ``template`` if everything that it names is known, for an option."""
    names = tuple(names)
    for name in placeholders(template):
        if name not in names:
            hint = near(name, names) or f"; there are {', '.join(names)}"
            raise fault(f"{{{{ {name} }}}} is not known in a query{hint}")
    return template


def quoted(text: str) -> str:
    """Return text as it stands between the quotes of a PromQL string."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def duration(seconds: float) -> str:
    """Return seconds as PromQL writes a duration, at least a millisecond."""
    return f"{max(1, round(seconds * 1000))}ms"
