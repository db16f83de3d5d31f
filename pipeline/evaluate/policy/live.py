"""The frozen models of a run on live observations, and the policy that is asked about what they say.

A process that holds slots encodes what its environments show, one observation at a time, as extraction does; the policy
is asked about all of them at once.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from data_specs.arrays import Array
from data_specs.batches import FrameBatch, LanguageBatch, PolicyBatch
from data_specs.shards import ModelRecord
from pipeline.config import ExtractRecipe
from pipeline.evaluate.policy.collate import join
from pipeline.evaluate.policy.environment import Observation
from pipeline.evaluate.policy.sight import Sight
from pipeline.evaluate.policy.trials import Look
from pipeline.extract.live import LANGUAGE, LiveEncoder
from pipeline.train.policy_data import with_pictures
from stages.draw import Draw

if TYPE_CHECKING:
    from pipeline.evaluate.policy.loading import LoadedPolicy

Moment = tuple[FrameBatch, LanguageBatch | None]


@dataclass(frozen=True, kw_only=True)
class LiveEyes:
    """Eyes that make of observations what a policy reads of its store.

    Attributes:
        recipe, models: those behind the policy's store, as JSON, so that this can be compared and sent.
        columns: what the policy reads. sight: which cameras it sees. device: where the frozen models run.
    """

    recipe: str
    models: tuple[str, ...]
    columns: tuple[str, ...]
    sight: Sight
    device: str

    @classmethod
    def of(cls, policy: "LoadedPolicy", sight: Sight) -> "LiveEyes":
        """Those of a policy."""
        return cls(
            recipe=policy.extraction.model_dump_json(),
            models=tuple(model.model_dump_json() for model in policy.models),
            columns=policy.columns,
            sight=sight,
            device=str(policy.device),
        )

    def __call__(self) -> "_LiveEyes":
        """Load the frozen models.

        RequestError when there are no such weights, or they are not those that the store was made with.
        """
        records = [ModelRecord.model_validate_json(model) for model in self.models]
        recipe = ExtractRecipe.model_validate_json(self.recipe)
        encoder = LiveEncoder.load(recipe, torch.device(self.device), self.columns, records=records)
        return _LiveEyes(encoder, self.sight)


class _LiveEyes:
    def __init__(self, encoder: LiveEncoder, sight: Sight) -> None:
        self._encoder, self._sight = encoder, sight

    def __call__(self, observation: Observation, key: str) -> bytes:
        """A pickled `Moment`: tensors sent as themselves would hold files open."""
        clip = self._sight.clip(observation, key)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as many processes as cores do this, and sums must not depend on their number
        try:
            frames = self._encoder.frames([clip])
            language = self._encoder.language([clip.text]) if LANGUAGE in self._encoder.columns else None
        finally:
            torch.set_num_threads(threads)
        return pickle.dumps((frames, language))


class RunPolicy:
    """A loaded policy that acts; `seed` is that of heads that draw."""

    def __init__(self, loaded: "LoadedPolicy", seed: int) -> None:
        self._loaded, self._seed, self._asked = loaded, seed, 0

    @property
    def horizon(self) -> int:
        """Steps of a chunk."""
        return self._loaded.horizon

    @torch.inference_mode()
    def act(self, looks: Sequence[Look]) -> Array:
        """Chunks f4 [B,H,A] for the moments seen."""
        batch = policy_batch([pickle.loads(look.seen) for look in looks])
        device = self._loaded.device
        draw = Draw.whole(len(looks), seed=self._seed, step=self._asked, device=device)
        self._asked += 1
        chunks: Array = self._loaded.model.act(batch.to(device), draw).float().cpu().numpy()
        return chunks


def policy_batch(moments: Sequence[Any]) -> PolicyBatch:
    """Moments as a batch without actions, as training's are: pictures decoded."""
    frames, languages = zip(*moments, strict=True)
    language = None if languages[0] is None else join(languages)
    return with_pictures(PolicyBatch(frames=join(frames), language=language))
