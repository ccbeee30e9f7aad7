"""Speed of several models side by side, in turn, and the rounds by which they are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl_plugins._onnx.session import open_session, run_session
from shipctl_plugins.qualify import _speed as speed
from shipctl_plugins.qualify import _timing as timing

SHORTEST = 0.045
"""Seconds that a configuration is measured for at least in a part, if the whole is not shorter."""
MOST_OPEN = 1 << 30
"""Bytes of models that are open at once; more than that are measured one after the other."""

Setting = tuple[int, int]
"""Threads and batch."""
Rows = list[dict[str, Any]]
Rounds = dict[str, list[float]]


class Race:
    """Measures models in turn, all with the same options."""

    def __init__(self, options: speed.SpeedOptions, evaluation: Dataset | None, seed: int) -> None:
        self._options, self._evaluation, self._seed = options, evaluation, seed

    def settings(self, model: OnnxModel) -> list[Setting]:
        """Return all configurations of a model, first the one that counts."""
        return speed.configurations(self._options, model)

    def seconds(self, settings: int, share: float) -> float:
        """Return how long it takes at most to measure a model in so many configurations, for that part of the time."""
        options = self._options
        if share < 1:
            part = self._part(share)
            return float(settings * part * (1 + options.warmup / options.min_duration))
        return settings * float(options.warmup + options.max_duration)

    def probe(self, model: OnnxModel) -> None:
        """Run a model once.

        :raises StageError: if it does not load or run
        """
        threads, batch = self.settings(model)[0]
        data = speed.samples_of(model, self._evaluation)
        feed = speed.feed_of(model, data, batch, self._seed, self._options.dimensions)
        run_session(open_session(model.path, threads=threads), feed)

    def run(self, models: Sequence[OnnxModel], share: float, settings: slice) -> list[tuple[Rows, Rounds]]:
        """Return, for each model, a row per configuration of that slice, and its metrics round by round.

        Models that are too large to be open side by side, or take other batches, have no rounds to compare.
        """
        chosen = [self.settings(model)[settings] for model in models]
        alike = all(one == chosen[0] for one in chosen)
        if len(models) > 1 and (not alike or sum(model.size for model in models) > MOST_OPEN):
            return [(self.run([model], share, settings)[0][0], {}) for model in models]
        rows: list[Rows] = [[] for _ in models]
        slices: list[dict[Setting, list[timing.Window]]] = [{} for _ in models]
        for setting in chosen[0]:
            runs = [self._runner(model, setting) for model in models]
            for index, raced in enumerate(self._race(runs, share)):
                stable = raced.settled(self._options.stability)
                rows[index].append(speed.row_of(setting[1], setting[0], raced.windows, stable=stable))
                slices[index][setting] = raced.slices
        return [(own, rounds_of(seen)) for own, seen in zip(rows, slices, strict=True)]

    def _part(self, share: float) -> float:
        return float(max(self._options.min_duration * share, min(SHORTEST, self._options.min_duration)))

    def _race(self, runs: Sequence[Callable[[], object]], share: float) -> list[timing.Raced]:
        options = self._options
        seconds = self._part(share) if share < 1 else float(options.min_duration)
        return timing.interleave(
            runs, warmup=options.warmup * seconds / options.min_duration, window=seconds / timing.WINDOWS,
            longest=seconds if share < 1 else options.max_duration, tolerance=options.stability,
        )  # fmt: skip

    def _runner(self, model: OnnxModel, setting: Setting) -> Callable[[], object]:
        threads, batch = setting
        data = speed.samples_of(model, self._evaluation)
        feed = speed.feed_of(model, data, batch, self._seed, self._options.dimensions)
        return partial(open_session(model.path, threads=threads).run, None, feed)


def rounds_of(windows: Mapping[Setting, Sequence[timing.Window]]) -> dict[str, list[float]]:
    """Return metrics round by round, under the names that the whole has, the first configuration's without it.

    A percentile is there only if every round has runs beyond it: 20 for the 95th.
    """
    found: dict[str, list[float]] = {}
    for place, ((threads, batch), seen) in enumerate(windows.items()):
        fewest = min(len(window.latencies) for window in seen)
        values = {
            f"latency.p{percent:g}": [timing.percentile(window.latencies, percent) for window in seen]
            for percent in speed.PERCENTILES
            if fewest * (1 - percent / 100) >= 1 or percent == 50  # noqa: PLR2004  (the median needs no more than one)
        }
        values["latency.mean"] = [float(window.latencies.mean()) for window in seen]
        values["throughput"] = [batch * window.rate for window in seen]
        found |= {f"{name}@batch={batch},threads={threads}": series for name, series in values.items()}
        if place == 0:
            found |= values
        else:
            pairs = zip(found["throughput"], values["throughput"], strict=False)
            found["throughput"] = [max(pair) for pair in pairs]
    return found
