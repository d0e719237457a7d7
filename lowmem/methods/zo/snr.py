"""The second step rule of AdaNAGED-R (reconstruction): signal-to-noise over curvature, several directions per batch.

Along q Rademacher directions the expected decrease eta |g|^2 - eta^2/2 (|g|^2 + sigma^2) h is largest at
eta = snr / h, and both factors can be measured: h from second differences, the share of rho^2 that is true gradient
from the spread of the per-example slopes, which one batch gives for free.

    rho_j = slope along z_j,  v_j = its batch-noise variance        A = <rho^2>,  N = <v>,  snr = (A - N) / A
    eta   = min(c snr / h,  p L / (q A))
    x <- x - eta sum_j clip(rho_j, 3 sqrt(A)) z_j                    mu <- length of the step along one direction

The second bound says that no step may claim more than the share p of the loss L (cross-entropies end at 0). The
quadratic model does not know that: far from a minimum its claims exceed the loss itself, and the large first steps
that it then takes lower the loss quickly and strand it (docs/LOG.md, 2026-11-23). Losses that are not positive have no
such bound and go without.

1 + q + 1/K forwards a step (5.5 for 4 directions at K = 2); state: a dozen scalars. c = 1/2 keeps three quarters of
the greedy gain with a quarter of the quadratic cost. All constants were fixed on quadratics, logistic regressions and
two procedural tasks, before any comparison on text. Needs at least 2 examples a batch.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

from lowmem.errors import ConfigError
from lowmem.methods.zo.algorithm import Evaluate, Evaluation, Move, Scales
from lowmem.methods.zo.perturb import Direction

DIRECTIONS = 4
CURVATURE_PERIOD = 2
WINDOW = 200
CURVATURE_WINDOW = max(WINDOW // CURVATURE_PERIOD, 20)
BURN_IN = 2
GREED = 0.5
LARGEST_SHARE = 0.05
FIRST_RADIUS = 1e-2  # times the weights' RMS
RADIUS_RANGE = (1e-5, 1e-1)  # times the weights' RMS
LEAST_SNR = 0.2
CLIP = 3.0


@dataclass
class _Mean:
    """Mean of all values so far, turning into an exponential mean with `window`."""

    window: int
    value: float = 0.0
    count: int = 0

    def add(self, x: float) -> None:
        self.count += 1
        self.value += (x - self.value) / min(self.count, self.window)


@dataclass
class _State:
    power: _Mean = field(default_factory=lambda: _Mean(WINDOW))
    noise: _Mean = field(default_factory=lambda: _Mean(WINDOW))
    bend: _Mean = field(default_factory=lambda: _Mean(CURVATURE_WINDOW))
    size: _Mean = field(default_factory=lambda: _Mean(CURVATURE_WINDOW))
    weighted: _Mean = field(default_factory=lambda: _Mean(CURVATURE_WINDOW))
    weights: _Mean = field(default_factory=lambda: _Mean(CURVATURE_WINDOW))
    radius: float | None = None
    steps: int = 0


@dataclass
class SnrNewton:
    scales: Scales
    _state: _State = field(default_factory=_State)

    @property
    def title(self) -> str:
        return "AdaNAGED-R (reconstruction, snr rule)"

    def step(self, evaluate: Evaluate, *, lr: float, step: int) -> Move:
        s = self._state
        mu = s.radius if s.radius is not None else self._clip_radius(FIRST_RADIUS * self.scales.rms)
        here = evaluate(None, 0.0)
        if len(here.sums) < 2:
            raise ConfigError(
                "method.step_rule: snr needs at least 2 examples per batch to measure the batch noise; "
                "raise per_device_train_batch_size, or use step_rule: parameter_free"
            )
        slopes, forwards = [], 1
        for j in range(DIRECTIONS):
            z = Direction(step, j)
            two_sided = s.steps < BURN_IN or (s.steps % CURVATURE_PERIOD == 0 and j == 0)
            plus = evaluate(z, mu)
            minus = evaluate(z, -mu) if two_sided else None
            forwards += 1 + two_sided
            if not (here.finite and plus.finite and (minus is None or minus.finite)):
                s.radius = mu / 2
                return Move(here.mean, (), forwards, skipped=True)
            slopes.append(self._slope(here, plus, minus, mu))
        eta = self._eta(here.mean) * lr
        terms = self._terms(slopes, eta, step) if s.steps >= BURN_IN else ()
        length = eta * math.sqrt(s.power.value)
        s.radius = self._clip_radius(length) if length > 0 else mu
        if s.steps == 0:
            self._forget_curvature()
        s.steps += 1
        details = {"projected_grad": slopes[0], "gamma": length, "radius": mu, "snr": self._snr()}
        return Move(here.mean, terms, forwards, details)

    def numbers(self) -> dict[str, float | int | None]:
        flat: dict[str, float | int | None] = {}
        for name, value in asdict(self._state).items():
            if isinstance(value, dict):
                flat |= {f"{name}.value": value["value"], f"{name}.count": value["count"]}
            else:
                flat[name] = value
        return flat

    def load_numbers(self, numbers: dict[str, float | int | None]) -> None:
        s = self._state
        for name, value in numbers.items():
            owner, _, attribute = name.rpartition(".")
            setattr(getattr(s, owner) if owner else s, attribute, value)

    def _slope(self, here: Evaluation, plus: Evaluation, minus: Evaluation | None, mu: float) -> float:
        """rho along one direction; its power, batch noise and (two-sided) curvature enter the means."""
        s, total = self._state, math.fsum(here.counts)
        if minus is None:
            d = [(p - h) / mu for p, h in zip(plus.sums, here.sums, strict=True)]
            rho = math.fsum(d) / total - mu * s.bend.value / 2
        else:
            d = [(p - m) / (2 * mu) for p, m in zip(plus.sums, minus.sums, strict=True)]
            rho = math.fsum(d) / total
            h = (plus.mean + minus.mean - 2 * here.mean) / mu**2
            s.bend.add(h)
            s.size.add(abs(h))
            s.weighted.add(h * rho**2)
            s.weights.add(rho**2)
        mean = math.fsum(d) / total
        n = len(d)
        spread = math.fsum((di - mean * c) ** 2 for di, c in zip(d, here.counts, strict=True))
        s.power.add(rho**2)
        s.noise.add(n / (n - 1) * spread / total**2)
        return rho

    def _snr(self) -> float:
        s = self._state
        share = (s.power.value - s.noise.value) / s.power.value if s.power.value > 0 else 0.0
        return max(share, LEAST_SNR / math.sqrt(max(s.power.count, 1)))

    def _eta(self, loss: float) -> float:
        s = self._state
        along = s.weighted.value / s.weights.value if s.weights.value > 0 else 0.0
        curvature = max(s.size.value, along)  # floor against negative or lucky samples
        eta = GREED * self._snr() / curvature if curvature > 0 else 0.0
        if loss <= 0 or s.power.value <= 0:
            return eta
        return min(eta, LARGEST_SHARE * loss / (DIRECTIONS * s.power.value))

    def _terms(self, slopes: list[float], eta: float, step: int) -> tuple[tuple[Direction, float], ...]:
        limit = CLIP * math.sqrt(self._state.power.value)
        return tuple((Direction(step, j), eta * max(-limit, min(limit, rho))) for j, rho in enumerate(slopes))

    def _clip_radius(self, radius: float) -> float:
        low, high = RADIUS_RANGE
        rms = self.scales.rms
        return min(max(radius, low * rms, self.scales.resolution * rms), high * rms)

    def _forget_curvature(self) -> None:
        """The first radius is a guess; curvature measured at it would linger in the means."""
        s = self._state
        for name in ("bend", "size", "weighted", "weights"):
            setattr(s, name, _Mean(CURVATURE_WINDOW))
