"""From one run's weights to another's: what two objectives of the same policy share."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

OWN = ("head.", "normaliser.")
"""What belongs to an objective and its data: the head, and the statistics of states and actions."""

ROBOT = ("state.",)
"""What depends on the robot: new where its state has other dimensions."""


@dataclass(frozen=True, kw_only=True)
class LoadedTrunk:
    """Names of a model's tensors: `loaded` from another run, `new` ones that keep their first weights; and `left`,
    those of the run that the model has no place for.
    """

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    left: tuple[str, ...]

    def lines(self) -> list[str]:
        """The same by part, as a person reads it."""
        sentences = {"loaded": self.loaded, "new": self.new, "left in the run": self.left}
        return [f"{what}: {_by_part(names)}" for what, names in sentences.items() if names]


@torch.no_grad()
def load_trunk(model: nn.Module, state: Mapping[str, Tensor]) -> LoadedTrunk:
    """Give `model` the weights and feature statistics of a run with the same trunk, all but head and normalisation.

    Parts of the policy that the run did not have stay new. ValueError, before anything is changed, when the run's
    backbone is none of this policy's or a part has another size.
    """
    mine = model.state_dict()
    shared = {name: tensor for name, tensor in mine.items() if not name.startswith(OWN)}
    loaded, new = [], [name for name in mine if name.startswith(OWN)]
    for name, tensor in shared.items():
        if name not in state:
            new.append(name)
        elif state[name].shape == tensor.shape:
            loaded.append(name)
        elif name.startswith(ROBOT):
            new.append(name)
        else:
            raise ValueError(
                f"{name} has shape {list(state[name].shape)} in the run and {list(tensor.shape)} in the policy: build "
                "the policy with the sizes of the run"
            )
    lacking = [name for name in shared if name.startswith("backbone.") and name not in state]
    if lacking:
        raise ValueError(f"the run has another backbone than the policy (no {lacking[0]}): build the policy with it")
    for name in loaded:
        mine[name].copy_(state[name])
    left = tuple(name for name in state if name not in mine and not name.startswith(OWN))
    return LoadedTrunk(loaded=tuple(loaded), new=tuple(new), left=left)


def _by_part(names: Iterable[str]) -> str:
    """Parts with the number of their tensors."""
    counts: dict[str, int] = {}
    for name in names:
        path = name.split(".")
        part = ".".join(path[: 2 if path[0] in ("vision", "types") else 1])
        counts[part] = counts.get(part, 0) + 1
    return ", ".join(f"{part} ({count} tensors)" for part, count in counts.items())
