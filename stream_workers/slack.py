"""How much batch work may run beside interactive work. Pure; time is passed in.

Gates say whether any batch may start now: none while the engine queues, its KV cache is nearly
full, or interactive requests wait for room. The window says how much: tokens in flight, on one
signal, interactive time to first token (TTFT). It shrinks when the TTFT of interactive requests
that ran beside batch exceeds that of requests that ran without by too much, and grows slowly while
it does not: in proportion to itself, as what an engine can take differs by orders of magnitude.
(The additive increase of Chiu and Jain, 1989, serves fairness between many; here is one.) Until it
was too wide for the first time it doubles.

The signal is compared once a round, a handful of TTFTs that are then dropped, so that each
decision rests on what its predecessor did. As under an endless backlog nothing runs without batch,
the window closes for a moment when the TTFT without batch is not known or old (as BBR does to see
the path without its own queue: Cardwell et al., 2016).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from stream_workers.admission import Load

ClosedBy = Literal["disabled", "engine queue", "kv cache", "interactive", "baseline", "ttft"]


@dataclass(frozen=True, kw_only=True)
class BatchPolicy:
    """``max_tokens`` is the widest window; the narrowest lets one ticket in at a time.

    Limits up to which the gates stay open: ``max_waiting`` requests in the engine's queue,
    ``max_kv_usage`` as a fraction, ``max_ready_interactive`` requests waiting before the engine.
    ``quantile`` of TTFT is compared, nearest rank: the tail of so few samples is chance. Longer by
    ``ttft_factor`` is too much, unless by less than ``ttft_slack_s``: batch costs an interactive
    request the rest of a step and a longer one, however short its TTFT is alone. Up to three
    quarters of that the window becomes ``increase`` times as wide a round, beyond it ``decrease``
    times.
    """

    max_tokens: int
    enabled: bool = True
    ttft_factor: float = 1.2
    ttft_slack_s: float = 0.008
    max_kv_usage: float = 0.9
    max_waiting: int = 4
    max_ready_interactive: int = 0
    quantile: float = 0.8
    increase: float = 1.08
    decrease: float = 0.7
    round_samples: int = 16
    round_s: float = 1.0
    """A round ends with enough samples after this, with any after five times this."""
    quiet_s: float = 60.0
    """Without a TTFT for so long there is nobody to disturb: batch may take everything."""
    baseline_age_s: float = 300.0
    """What was measured without batch counts this long."""
    patience_s: float = 30.0
    """Longest wait for samples without batch, for a decrease to show, and after a bad minimum."""

    @property
    def min_tokens(self) -> int:
        """The narrowest window."""
        return max(1, self.max_tokens // 256)


def nearest_rank(values: Iterable[float], quantile: float) -> float:
    """The least value that at least this fraction of ``values`` does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(quantile * len(ordered)) - 1)]


class BatchWindow:
    """Tokens that batch may have in flight. Feed it every interactive TTFT; update it often."""

    def __init__(self, policy: BatchPolicy, now_s: float) -> None:
        self._policy = policy
        self._window = float(policy.min_tokens)
        self._baseline: deque[tuple[float, float]] = deque(maxlen=4 * policy.round_samples)
        self._round: list[float] = []
        self._round_since_s = now_s
        self._last_ttft_s = -math.inf
        self._settling_until_s: float | None = None
        self._paused_until_s = -math.inf
        self._probing = False
        self._quiet = True
        self._doubling = True
        self._drained_at_s: float | None = None
        self._next_probe_s = -math.inf
        self.closed_by: ClosedBy | None = None

    @property
    def limit_tokens(self) -> int:
        """0 while closed, else ``min_tokens`` to ``max_tokens``."""
        if self.closed_by is not None:
            return 0
        return self._policy.max_tokens if self._quiet else int(self._window)

    @property
    def baseline_s(self) -> float | None:
        """Interactive TTFT without batch."""
        values = [seconds for _, seconds in self._baseline]
        return nearest_rank(values, self._policy.quantile) if values else None

    def reconfigure(self, policy: BatchPolicy) -> None:
        """A new policy, from the next update on."""
        self._policy = policy
        self._window = min(max(self._window, policy.min_tokens), policy.max_tokens)
        self._baseline = deque(self._baseline, maxlen=4 * policy.round_samples)

    def observe_ttft(self, seconds: float, batch_running: bool, now_s: float) -> None:
        """An interactive request's first token came; was any batch in flight meanwhile?"""
        self._last_ttft_s = now_s
        if self._quiet:
            self._quiet = False
            self._settle(now_s)
        if batch_running:
            self._round.append(seconds)
        else:
            self._baseline.append((now_s, seconds))

    def update(
        self, load: Load, now_s: float, *, ready_interactive: int = 0, batch_tokens: int = 0
    ) -> None:
        """Look at the engine, at interactive requests held before it, at batch in flight."""
        policy = self._policy
        if now_s - self._last_ttft_s >= policy.quiet_s:
            self._quiet = True
        while self._baseline and self._baseline[0][0] < now_s - policy.baseline_age_s:
            self._baseline.popleft()
        if self._settling_until_s is not None and (
            batch_tokens <= self._window or now_s >= self._settling_until_s
        ):
            self._settling_until_s = None
            self._begin_round(now_s)
        if self._probing:
            self._probe(now_s, batch_tokens)
        gate = self._gate(load, ready_interactive, now_s)
        if not self._probing and self._round_ended(now_s):
            self._judge(now_s, batch_tokens, may_grow=gate is None)
            gate = self._gate(load, ready_interactive, now_s)
        self.closed_by = gate

    def _gate(self, load: Load, ready_interactive: int, now_s: float) -> ClosedBy | None:
        policy = self._policy
        if not policy.enabled:
            return "disabled"
        if load.waiting > policy.max_waiting:
            return "engine queue"
        if load.kv_cache_usage > policy.max_kv_usage:
            return "kv cache"
        if ready_interactive > policy.max_ready_interactive:
            return "interactive"
        if self._probing:
            return "baseline"
        return "ttft" if now_s < self._paused_until_s else None

    def _begin_round(self, now_s: float) -> None:
        self._round, self._round_since_s = [], now_s

    def _round_ended(self, now_s: float) -> bool:
        policy, lasted = self._policy, now_s - self._round_since_s
        if lasted < policy.round_s:
            return False
        if len(self._round) >= policy.round_samples:
            return True
        return bool(self._round) and lasted >= 5 * policy.round_s

    def _judge(self, now_s: float, batch_tokens: int, *, may_grow: bool) -> None:
        policy, samples = self._policy, self._round
        self._begin_round(now_s)
        if self._must_probe(len(samples), now_s):
            self._probing, self._drained_at_s = True, None
            return
        baseline = self.baseline_s
        if baseline is None or self._settling_until_s is not None:
            return
        used = batch_tokens >= self._window / 2
        longer_s = nearest_rank(samples, policy.quantile) - baseline
        too_much_s = max((policy.ttft_factor - 1) * baseline, policy.ttft_slack_s)
        if longer_s > too_much_s:
            self._shrink(now_s)
        elif longer_s <= 0.75 * too_much_s and used and may_grow:
            factor = 2.0 if self._doubling else policy.increase
            self._window = min(self._window * factor, policy.max_tokens)

    def _shrink(self, now_s: float) -> None:
        policy = self._policy
        if self._window <= policy.min_tokens:
            self._paused_until_s = now_s + policy.patience_s
        self._window = max(self._window * policy.decrease, policy.min_tokens)
        self._doubling = False
        self._settle(now_s)

    def _settle(self, now_s: float) -> None:
        """Until batch in flight has come down to the window, TTFT says nothing about it."""
        self._settling_until_s = now_s + self._policy.patience_s

    def _must_probe(self, samples: int, now_s: float) -> bool:
        enough = self._policy.round_samples
        if len(self._baseline) >= enough:
            return False
        return samples >= enough or now_s >= self._next_probe_s

    def _probe(self, now_s: float, batch_tokens: int) -> None:
        policy = self._policy
        if self._drained_at_s is None and batch_tokens == 0:
            self._drained_at_s = now_s
        # Interactive traffic may be too thin to wait for more of it.
        late = self._drained_at_s is not None and now_s - self._drained_at_s >= policy.patience_s
        if late or len(self._baseline) >= policy.round_samples:
            self._probing = False
            self._next_probe_s = now_s + policy.baseline_age_s
            self._begin_round(now_s)
