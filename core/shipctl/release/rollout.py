"""The state machine of every release: pure, so that each path can be tested without a clock or a server.

    pending → preparing → preflight → shifting(i) ⇄ analysing(i) → promoting → watching → done
    paused (for a person, or because nothing can be concluded); aborting → rolled-back from anywhere; rejected where
    nothing that serves was touched.

:func:`advance` and :func:`retreat` look at what is the case and say the next single act. They hold no memory but
:class:`RolloutState`, and what they said counts only once it is observed: killed between an act and the record of it,
the next call sees that it was done. What must be known whatever happens (that a request may have reached the
candidate, that it is given up) is in the state one call before the act.
"""

from __future__ import annotations

from shipctl.release.backward import retreat
from shipctl.release.decision import POLL, Decision, Facts, Measurement, RolloutState
from shipctl.release.forward import advance

__all__ = ["POLL", "Decision", "Facts", "Measurement", "RolloutState", "advance", "retreat"]
