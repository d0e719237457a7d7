"""AdaNAGED-R (reconstruction): zeroth order without a learning rate or a smoothing parameter.

The paper (Bystrov et al., arXiv 2606.14970) could be read in abstract only. This is our reconstruction from that
abstract and from its ancestors (ALIAS, arXiv 2506.03725; DoG/D-Adaptation): no result of the paper is claimed.

    rho = (L(x + mu z) - L(x - mu z)) / (2 mu)                 slope along z, two forwards
    h   = |L(x + mu z) + L(x - mu z) - 2 L(x)| / mu^2          curvature along z, every K steps
    S  += K h                                                  accumulated curvature
    D   = lower confidence bound of the loss decrease so far: every K steps, the slope that a *fresh* batch has
          along the move just made (the batch that chose its sign would be biased towards it)
    gamma = min(sqrt(D / S), e_rho / e_h)                      distance/curvature, capped by the 1-D Newton step
    x  <- x - gamma sign(rho) z

mu follows gamma: the probing radius is the trial step's radius, kept above what the loss's numerical noise and the
weights' dtype can resolve. State: a dozen scalars, 0 bytes per parameter. 2.3 forwards a step at K = 10. z is one
Rademacher or Gaussian direction over all blocks; per-block geometries need a history and are not in this version.
Scaling the loss or the weights by a power of two changes nothing (tested). Weak point: gradient noise.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

from lowmem.methods.zo.algorithm import Evaluate, Evaluation, Move, Scales
from lowmem.methods.zo.perturb import Direction

# Fixed before any language-model run (specification, section 1.8): they were chosen on three toy problems.
FIRST_DECREMENT = 1e-2  # D starts at this share of the Newton decrement along the first z
CONFIDENCE = 0.3  # standard deviations subtracted from the progress estimate
CAP = 1.0  # of the 1-D Newton step
FIRST_RADIUS = 1e-4  # times the weights' RMS
LARGEST_RADIUS = 1e-1  # times the weights' RMS
NOISE_SHARE = 0.3  # numerical noise allowed in rho and h, relative to their running means
SLOPE_MEMORY, CURVATURE_MEMORY = 0.98, 0.9
NOISE_PROBES = 8
TINY = 1e-300


@dataclass
class _State:
    """Scalars in fp64; None = not known yet."""

    S: float = 0.0
    progress: float = 0.0
    variance: float = 0.0
    D: float | None = None
    slope: float | None = None
    curvature: float | None = None
    gamma: float | None = None
    noise: float | None = None
    bends: int = 0
    widen: float = 1.0
    pending_step: int | None = None
    pending_sign: float | None = None
    pending_gamma: float | None = None


@dataclass
class AdaNaged:
    """`scales` come from the weights before the first step; `period` is K."""

    scales: Scales
    period: int = 10
    _state: _State = field(default_factory=_State)

    @property
    def title(self) -> str:
        return "AdaNAGED-R (reconstruction)"

    def step(self, evaluate: Evaluate, *, lr: float, step: int) -> Move:
        z, s, forwards = Direction(step), self._state, 2
        curved = step % self.period == 0 or s.curvature is None
        if s.noise is None:
            noise = _numerical_noise(evaluate, z, 1e-3 * FIRST_RADIUS * self.scales.rms)
            forwards += NOISE_PROBES
            if not math.isfinite(noise):
                return self._back_off(noise, forwards)
            s.noise = noise
        mu = self._radius(curved)
        points = [evaluate(z, mu), evaluate(z, -mu)]
        loss = (points[0].mean + points[1].mean) / 2
        pending = self._pending()
        if pending is not None:
            points += [evaluate(pending[0], mu), evaluate(pending[0], -mu)]
        if curved:
            points.append(evaluate(None, 0.0))
        forwards += len(points) - 2
        if not all(point.finite for point in points):
            return self._back_off(loss, forwards)
        if pending is not None:
            self._credit(_slope(points[2], points[3], mu), pending)
        rho = _slope(points[0], points[1], mu)
        if curved and not self._bend(rho, points, mu):
            s.widen *= 2  # the dtype cannot hold so small a perturbation: probe further out
            return self._back_off(loss, forwards)
        s.slope = _average(s.slope, abs(rho), SLOPE_MEMORY)
        gamma = self._gamma() * lr
        s.gamma = gamma
        sign = math.copysign(1.0, rho) if rho else 0.0
        if curved:
            s.pending_step, s.pending_sign, s.pending_gamma = step, sign, gamma
        details = {"projected_grad": rho, "gamma": gamma, "radius": mu, "D": s.D or 0.0}
        return Move(loss, ((z, gamma * sign),), forwards, details)

    def numbers(self) -> dict[str, float | int | None]:
        return asdict(self._state)

    def load_numbers(self, numbers: dict[str, float | int | None]) -> None:
        self._state = _State(**numbers)  # type: ignore[arg-type]

    def _radius(self, curved: bool) -> float:
        """mu: the last step's length, above the noise floor of rho (and of h when it is measured), below a tenth
        of the weights."""
        s, rms = self._state, self.scales.rms
        noise = s.noise or 0.0
        low = self.scales.resolution * rms
        if s.slope:
            low = max(low, noise / (math.sqrt(2) * NOISE_SHARE * s.slope))
        if curved and s.curvature:
            low = max(low, math.sqrt(math.sqrt(6) * noise / (NOISE_SHARE * s.curvature)))
        high = LARGEST_RADIUS * rms
        return min(max(s.gamma or FIRST_RADIUS * rms, low) * s.widen, high)

    def _pending(self) -> tuple[Direction, float, float] | None:
        """The last probed move and its signed length, once; the caller evaluates it on this step's fresh batch."""
        s = self._state
        if s.pending_step is None or s.pending_sign is None or s.pending_gamma is None:
            return None
        pending = (Direction(s.pending_step), s.pending_sign, s.pending_gamma)
        s.pending_step = s.pending_sign = s.pending_gamma = None
        return pending

    def _credit(self, slope: float, pending: tuple[Direction, float, float]) -> None:
        """Progress along a past move raises D, by its lower confidence bound."""
        s = self._state
        gain = self.period * pending[2] * pending[1] * slope
        s.progress += gain
        s.variance += gain * gain
        bound = s.progress - CONFIDENCE * math.sqrt(s.variance)
        if s.D is not None:
            s.D = max(s.D, bound)

    def _bend(self, rho: float, points: list[Evaluation], mu: float) -> bool:
        """Curvature along z enters S; False when the probes did not change the loss at all."""
        s = self._state
        plus, minus, here = points[0].mean, points[1].mean, points[-1].mean
        if plus == minus == here:
            return False
        floor = max(math.sqrt(6) * (s.noise or 0.0) / mu**2, TINY)
        h = max(abs(plus + minus - 2 * here) / mu**2, floor)
        s.S += self.period * h
        s.bends += 1
        s.curvature = _average(s.curvature, h, CURVATURE_MEMORY)
        if s.D is None:
            s.D = FIRST_DECREMENT * rho**2 / h
        return True

    def _gamma(self) -> float:
        s = self._state
        if s.D is None or not s.curvature or not s.slope:
            return 0.0
        curvature = s.S / self.period if s.bends == 1 else s.S  # one sample says h, not K h
        return min(math.sqrt(s.D / curvature), CAP * s.slope / s.curvature)

    def _back_off(self, loss: float, forwards: int) -> Move:
        """A probe was not finite or moved nothing: leave the weights, halve what follows."""
        s = self._state
        if s.D is not None:
            s.D /= 4
        s.gamma = None if s.gamma is None else s.gamma / 2
        return Move(loss, (), forwards, skipped=True)


def _slope(plus: Evaluation, minus: Evaluation, mu: float) -> float:
    return (plus.mean - minus.mean) / (2 * mu)


def _average(old: float | None, new: float, memory: float) -> float:
    return new if old is None else memory * old + (1 - memory) * new


def _numerical_noise(evaluate: Evaluate, z: Direction, radius: float) -> float:
    """Standard deviation of the loss around a straight line over `NOISE_PROBES` tiny steps along z: rounding only."""
    xs = [float(i) - (NOISE_PROBES - 1) / 2 for i in range(NOISE_PROBES)]
    ys = [evaluate(z, radius * x).mean for x in xs]
    mean = math.fsum(ys) / NOISE_PROBES
    tilt = math.fsum(x * (y - mean) for x, y in zip(xs, ys, strict=True)) / math.fsum(x * x for x in xs)
    residuals = [y - mean - tilt * x for x, y in zip(xs, ys, strict=True)]
    return math.sqrt(math.fsum(r * r for r in residuals) / (NOISE_PROBES - 2))
