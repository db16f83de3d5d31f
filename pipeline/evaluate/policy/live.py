"""The frozen models of a run on live observations, in the processes that hold the environments.

An observation is encoded by itself, as extraction does with `robot.live`; nothing of the policy is imported here.
"""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from data_specs.batches import FrameBatch, LanguageBatch
from data_specs.shards import ModelRecord
from pipeline.config import ExtractRecipe
from pipeline.devices import one_thread
from pipeline.evaluate.policy.environment import Observation
from pipeline.evaluate.policy.sight import Sight
from pipeline.extract.live import LANGUAGE, LiveEncoder

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
        """A saved `Moment`: tensors sent as themselves would hold files open, and pickled by themselves lose uint16."""
        clip = self._sight.clip(observation, key)
        with one_thread():  # as many processes as cores do this, and sums must not depend on their number
            frames = self._encoder.frames([clip])
            language = self._encoder.language([clip.text]) if LANGUAGE in self._encoder.columns else None
        saved = io.BytesIO()
        torch.save((frames, language), saved)
        return saved.getvalue()


def saved_moment(data: bytes) -> Moment:
    """The moment that eyes of this program have saved. Nothing of anybody else's is ever read with it."""
    moment: Moment = torch.load(io.BytesIO(data), weights_only=False)
    return moment
