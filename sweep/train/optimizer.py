"""The optimizer that a spec names, over a decoder's parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.decoder import Decoder
from models.transfer import is_hidden_matrix, muon_rate, parameter_groups, stacked_matrices
from sweep.plan.spec import OptimSpec


def build_optimizer(model: Decoder, optim: OptimSpec) -> torch.optim.Optimizer | MuonAndAdamW:
    """AdamW, or Muon for the matrices in the layers and AdamW for the rest. Every group has "rate", the
    factor on the scheduled rate that its "lr" wants.

    Raises RuntimeError for Muon where the installed torch has none.
    """
    if optim.kind == "adamw":
        return _adamw(model, optim)
    if not hasattr(torch.optim, "Muon"):
        raise RuntimeError(f"optim=muon wants torch 2.9 or later; this is {torch.__version__}")
    return MuonAndAdamW(model, optim)


def _adamw(model: Decoder, optim: OptimSpec, **chosen) -> torch.optim.AdamW:
    groups = parameter_groups(
        model,
        model.shape,
        optim.param,
        optim.base_width,
        optim.weight_decay,
        optim.base_depth,
        optim.embedding_rate,
        **chosen,
    )
    for group in groups:
        group["eps"] = optim.eps * group.pop("eps_factor")
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)


class MuonAndAdamW:
    """torch's Muon (Jordan et al. 2024) and AdamW as one optimizer: what training and checkpoints call.

    Query, key, value, gate and value of the feed-forward are matrices of their own to Muon: views of
    the rows of the tensors that hold them. Orthogonalised together, the update of one would depend on
    the size of the others' gradients.
    """

    def __init__(self, model: Decoder, optim: OptimSpec) -> None:
        rate = muon_rate(model.shape, optim.param, optim.base_width)
        self._stacks: list[tuple[nn.Parameter, list[nn.Parameter]]] = []
        for name, tensor in model.named_parameters():
            if is_hidden_matrix(name):
                rows = tensor.detach().chunk(stacked_matrices(name, model.shape))
                self._stacks.append((tensor, [nn.Parameter(part) for part in rows]))
        matrices = {
            "params": [part for _, parts in self._stacks for part in parts],
            "rate": rate,
            "weight_decay": optim.weight_decay / rate,
        }
        self._muon = torch.optim.Muon(
            [matrices], lr=optim.lr, momentum=optim.momentum, nesterov=True, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw = _adamw(model, optim, chosen=lambda name: not is_hidden_matrix(name))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [*self._muon.param_groups, *self._adamw.param_groups]

    def step(self) -> None:
        for tensor, parts in self._stacks:
            for part, gradient in zip(parts, _rows(tensor.grad, len(parts)), strict=True):
                part.grad = gradient
        self._muon.step()
        self._adamw.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for tensor, parts in self._stacks:
            for part in parts:
                part.grad = None
            if set_to_none:
                tensor.grad = None
            elif tensor.grad is not None:
                tensor.grad.zero_()
        self._adamw.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._muon.load_state_dict(state["muon"])
        self._adamw.load_state_dict(state["adamw"])


def _rows(gradient: Tensor | None, parts: int) -> tuple[Tensor | None, ...]:
    return (None,) * parts if gradient is None else gradient.chunk(parts)
