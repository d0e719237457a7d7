"""Which rule a parameter takes: spectral rules are for hidden matrices, everything else takes a second rule.

A hidden matrix is any 2-D parameter, LoRA's factors included, that is neither an embedding nor the output head. Those
are recognised as modules, not by their number of rows: a limit of 10,000 rows, as published, would also exclude the
MLPs of models of 7B parameters and more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lowmem.methods.rules.base import Rule

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class RuleChoice:
    """`matrices` for hidden matrices, `others` for vectors, for the named `embeddings`, and for other shapes."""

    matrices: Rule
    others: Rule
    embeddings: frozenset[str] = frozenset()

    @property
    def title(self) -> str:
        same = self.matrices == self.others
        return self.matrices.title if same else f"{self.matrices.title} ({self.others.title} off the matrices)"

    def __call__(self, name: str, weight: Tensor) -> Rule:
        return self.matrices if weight.dim() == 2 and name not in self.embeddings else self.others


def embedding_names(model: PreTrainedModel, parameters: Mapping[str, nn.Parameter]) -> frozenset[str]:
    """Names of the `parameters` that are weights of an embedding (tokens or positions) or of the output head."""
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    head = model.get_output_embeddings()
    weights = {id(m.weight) for m in [*tables, head] if hasattr(m, "weight")}  # a packed head has none
    return frozenset(name for name, p in parameters.items() if id(p) in weights)
