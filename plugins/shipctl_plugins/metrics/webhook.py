"""Metric provider `webhook`: asks a service of yours, as Argo's web metrics and Flagger's webhooks do.

The request is a POST with the JSON object `{pipeline, model, revision, version, since, until}`; `version` is Triton's
number of the revision, the window is in seconds since the epoch. The answer is status 200 with the JSON object
`{requests, errors, durations?, times?, value?, coverage?}`: counts of that window, seconds, and the share of the window
that the service can vouch for. Anything else is an error, never a number.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import ClassVar

from shipctl.errors import StageError
from shipctl.release.metrics import MetricContext, MetricOptions, MetricProvider, Samples
from shipctl.stages.context import CheckContext
from shipctl_plugins._metrics.answers import question, samples
from shipctl_plugins._metrics.options import WebOptions
from shipctl_plugins._metrics.web import excerpt, shown


class WebhookOptions(WebOptions):
    """Which service, and as whom."""


class Webhook(MetricProvider):
    """Ask a service of yours."""

    api_version: ClassVar[int] = 1
    options_model: ClassVar[type[MetricOptions]] = WebhookOptions
    options: WebhookOptions

    def __init__(self, options: WebhookOptions, ctx: MetricContext) -> None:
        super().__init__(options, ctx)
        self._caller = options.caller(ctx.project)

    @classmethod
    def check(cls, options: WebhookOptions, ctx: CheckContext) -> None:
        """Look whether the token is there. The service is not asked: it may act on what it hears."""
        options.check(ctx.base)

    def query(self, revision: str, since: float, until: float) -> Samples:
        """Ask for one window.

        :raises StageError: if no valid answer comes in time
        """
        asked = question(self.ctx, revision, since, until)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        status, text = self._caller.ask(self.options.url, json.dumps(asked).encode(), headers)
        who = f"webhook {shown(self.options.url)}"
        if status != HTTPStatus.OK:
            raise StageError(f"{who} answered with status {status}, not 200: {excerpt(text) or 'no text'}")
        return samples(text, asked, who)
