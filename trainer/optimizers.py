"""The optimizer of a run: AdamW, or Muon for the weight matrices with AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from trainer.precision import bf16_pays

BETAS = (0.9, 0.95)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) on two-dimensional hidden weights, AdamW on all others.

    Muon orthogonalises each update, so a run of a few hundred steps moves every direction of a
    matrix and not only the few that dominate the gradient. Embeddings are no such maps and take
    AdamW, as its authors advise.
    """

    def __init__(
        self,
        matrices: list[torch.nn.Parameter],
        others: list[torch.nn.Parameter],
        *,
        muon_rate: float,
        rate: float,
        weight_decay: float,
    ) -> None:
        self._muon = torch.optim.Muon(matrices, lr=muon_rate, weight_decay=weight_decay)
        self._adam = torch.optim.AdamW(
            others, lr=rate, betas=BETAS, weight_decay=weight_decay, fused=True
        )
        super().__init__([*matrices, *others], {"lr": rate})
        # The very groups of the two, so that a schedule that sets a rate here sets it there.
        self.param_groups = [*self._muon.param_groups, *self._adam.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter. ``closure`` is not supported."""
        if closure is not None:
            raise ValueError("MuonWithAdamW takes no closure")
        self._muon.step()  # type: ignore[no-untyped-call]
        self._adam.step()

    def state_dict(self) -> dict[str, Any]:
        """Both states."""
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Both states, as :meth:`state_dict` gave them."""
        if "muon" in state_dict:
            self._muon.load_state_dict(state_dict["muon"])
            self._adam.load_state_dict(state_dict["adam"])
            self.param_groups = [*self._muon.param_groups, *self._adam.param_groups]


def build_optimizer(
    model: torch.nn.Module, *, rate: float, weight_decay: float, muon_rate: float | None
) -> torch.optim.Optimizer:
    """AdamW at ``rate``; with ``muon_rate``, Muon for the hidden matrices.

    Not where bfloat16 is emulated: torch's Muon orthogonalises in it, at 10 s an update of the
    embedded model.
    """
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)
    }
    parameters = [item for item in model.parameters() if item.requires_grad]
    matrices = [item for item in parameters if item.ndim == 2 and id(item) not in embeddings]
    if muon_rate is None or not matrices or not bf16_pays():
        return torch.optim.AdamW(
            parameters, lr=rate, betas=BETAS, weight_decay=weight_decay, fused=True
        )
    chosen = {id(item) for item in matrices}
    others = [item for item in parameters if id(item) not in chosen]
    return MuonWithAdamW(
        matrices, others, muon_rate=muon_rate, rate=rate, weight_decay=weight_decay
    )
