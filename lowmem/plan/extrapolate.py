"""Peak bytes of a deep model from two shallow ones.

Every part of every phase (`lowmem.plan.simulate`) is linear in the number of layers; their maximum is not, since the
part that peaks changes with depth. So each part is extrapolated by itself, and then the maximum is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowmem.config.method import GumMethod
from lowmem.config.run import RunConfig
from lowmem.plan.fakes import with_depth
from lowmem.plan.simulate import Simulation, Work, simulate
from lowmem.plan.tracker import Peak

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Places = dict[tuple[str, str], Peak]


@dataclass(frozen=True)
class Prediction:
    """What one way of training needs: the peak of each phase with its components, in bytes."""

    phases: dict[str, Peak]
    resident: int
    parameters: int
    trainable: int

    @property
    def peak(self) -> Peak:
        return max(self.phases.values(), key=lambda peak: peak.nbytes)

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda name: self.phases[name].nbytes)


def predict(config: RunConfig, shape: PretrainedConfig, work: Work, *, granularity: int = 1) -> Prediction:
    """The bill of `config` on a model of `shape`, from two shallow simulations, or from one where it is shallow."""
    layers: int = shape.get_text_config().num_hidden_layers
    depths = simulated_depths(shape, beyond=config.method.gamma if isinstance(config.method, GumMethod) else 0)
    if depths is None:
        return _summary(simulate(config, shape, work, granularity=granularity))
    low, high = (simulate(config, with_depth(shape, depth), work, granularity=granularity) for depth in depths)
    return _summary(_line(low, high, depths, layers))


def simulated_depths(shape: PretrainedConfig, *, beyond: int = 0) -> tuple[int, int] | None:
    """Two depths above `beyond` that tell all others, or None where simulating the whole model costs no more.

    Layers of several kinds repeat with a period (sliding and full attention), which both depths are multiples of.
    """
    text: Any = shape.get_text_config()
    layers: int = text.num_hidden_layers
    period = _period(list(getattr(text, "layer_types", None) or [""] * layers))
    first = 2 if period == 1 else period
    first += -(-max(0, beyond + 1 - first) // period) * period
    second = first + period
    return (first, second) if layers > first + second else None


def between(low: Prediction, high: Prediction, at: tuple[int, int], examples: int) -> Prediction:
    """The bill at a micro-batch between two that were predicted; activations are linear in its size."""
    names = [name for name in high.phases if name in low.phases]
    phases = {name: _peak_at(low.phases[name], high.phases[name], at, examples) for name in names}
    return Prediction(phases, high.resident, high.parameters, high.trainable)


def _period(kinds: list[str]) -> int:
    for period in range(1, len(kinds) // 2 + 1):
        if all(kind == kinds[index % period] for index, kind in enumerate(kinds)):
            return period
    return len(kinds)


def _summary(simulation: Simulation) -> Prediction:
    phases: dict[str, Peak] = {}
    for (phase, _), peak in simulation.places.items():
        if peak.nbytes >= phases.get(phase, Peak()).nbytes:
            phases[phase] = peak
    phases.pop("outside", None)
    phases.pop("between", None)
    return Prediction(phases, simulation.resident, simulation.parameters, simulation.trainable)


def _line(low: Simulation, high: Simulation, depths: tuple[int, int], layers: int) -> Simulation:
    def value(at_low: int, at_high: int) -> int:
        return value_at(at_low, at_high, depths, layers)

    places = {
        place: _peak_at(low.places[place], peak, depths, layers)
        for place, peak in high.places.items()
        if place in low.places
    }
    return Simulation(
        places,
        value(low.parameters, high.parameters),
        value(low.trainable, high.trainable),
        value(low.resident, high.resident),
    )


def _peak_at(low: Peak, high: Peak, at: tuple[int, int], where: int) -> Peak:
    names = {**low.components, **high.components}
    components = {
        name: value_at(low.components.get(name, 0), high.components.get(name, 0), at, where) for name in names
    }
    return Peak(value_at(low.nbytes, high.nbytes, at, where), {name: n for name, n in components.items() if n > 0})


def value_at(low: int, high: int, at: tuple[int, int], where: int) -> int:
    """The straight line through (at[0], low) and (at[1], high), at `where`."""
    return round(high + (high - low) * (where - at[1]) / (at[1] - at[0]))
