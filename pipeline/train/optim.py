"""AdamW, its learning rate as a function of the step, and a moving average of the weights."""

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from pipeline.train_config import TrainSection

_DECAYING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def make_optimizer(
    model: nn.Module, section: TrainSection, lr_scales: Mapping[str, float] = MappingProxyType({})
) -> torch.optim.AdamW:
    """AdamW over all parameters that learn. Weight decay is for the matrices of linear maps and convolutions only.

    Norms, biases, positions, queries and codebooks mean something at their own scale: they do not decay.

    Args:
        model, section: what learns, and how.
        lr_scales: by the beginning of parameter names, what the rate is multiplied by there; 0 freezes them. A group
            says its scale as `lr_scale`, see `set_learning_rate`.
    """
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, _DECAYING)}
    parts: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        scale = next((scale for start, scale in lr_scales.items() if name.startswith(start)), 1.0)
        if parameter.requires_grad:
            parts.setdefault((scale, id(parameter) in matrices), []).append(parameter)
    groups = [
        {"params": parts[key], "weight_decay": section.weight_decay if key[1] else 0.0, "lr_scale": key[0]}
        for key in sorted(parts, reverse=True)
    ]
    betas = (section.beta1, section.beta2)
    return torch.optim.AdamW(groups, lr=section.lr, betas=betas, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)  # checkpoints of before had no scales


def learning_rate(section: TrainSection, step: int) -> float:
    """The rate of the step that follows `step` finished ones: linear warm-up, then a half cosine to the last step."""
    if step < section.warmup:
        return section.lr * (step + 1) / section.warmup
    done = (step - section.warmup) / max(1, section.steps - section.warmup)
    falling = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return section.lr * (section.lr_final + (1 - section.lr_final) * falling)


class WeightAverage:
    """Exponential moving average of a model's floating-point parameters; its buffers are copied as they are.

    The decay starts low, min(decay, (1 + n) / (10 + n)) at update n, so that the first weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay, self.updates = model, decay, 0
        self._average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        current = [parameter.detach() for parameter in self._model.parameters()]
        torch._foreach_lerp_(list(self._average.values()), current, 1 - decay)
        self.updates += 1

    def weights(self) -> dict[str, Tensor]:
        """The model's state with the averages in place of its parameters."""
        return {**self._model.state_dict(), **self._average}

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages with the model's parameters; a second call puts them back."""
        for name, parameter in self._model.named_parameters():
            kept = parameter.detach().clone()
            parameter.copy_(self._average[name])
            self._average[name] = kept

    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Go on from the `weights` and the number of updates of a checkpoint."""
        self._average = {name: weights[name].to(value.device, copy=True) for name, value in self._average.items()}
        self.updates = updates
