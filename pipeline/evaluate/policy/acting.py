"""A run's policy that acts: asked about the moments of all slots at once.

Shape legend: B moments, H steps of a chunk, A dimensions of an action.
"""

from collections.abc import Sequence

import torch

from data_specs.arrays import Array
from data_specs.batches import PolicyBatch
from pipeline.evaluate.policy.collate import join
from pipeline.evaluate.policy.live import Moment, saved_moment
from pipeline.evaluate.policy.loading import LoadedPolicy
from pipeline.evaluate.policy.trials import Look
from pipeline.train.policy_data import with_pictures
from stages.draw import Draw


class RunPolicy:
    """A loaded policy that acts; `seed` is that of heads that draw."""

    def __init__(self, loaded: LoadedPolicy, seed: int) -> None:
        self._loaded, self._seed, self._asked = loaded, seed, 0

    @property
    def horizon(self) -> int:
        """Steps of a chunk."""
        return self._loaded.horizon

    @torch.inference_mode()
    def act(self, looks: Sequence[Look]) -> Array:
        """Chunks f4 [B,H,A] for the moments seen."""
        batch = policy_batch([saved_moment(look.seen) for look in looks])
        device = self._loaded.device
        draw = Draw.whole(len(looks), seed=self._seed, step=self._asked, device=device)
        self._asked += 1
        chunks: Array = self._loaded.model.act(batch.to(device), draw).float().cpu().numpy()
        return chunks


def policy_batch(moments: Sequence[Moment]) -> PolicyBatch:
    """Moments as a batch without actions, as training's are: pictures decoded."""
    frames, languages = zip(*moments, strict=True)
    language = None if languages[0] is None else join(languages)
    return with_pictures(PolicyBatch(frames=join(frames), language=language))
