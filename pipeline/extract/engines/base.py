"""What an engine of `cla extract` offers to the runner."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from data_specs.shards import ModelRecord
from pipeline.extract.encoders.text import TextEncoder
from pipeline.extract.models import FrozenModels
from pipeline.extract.partition import ShardPlan
from pipeline.extract.progress import Reporter, Tally
from pipeline.store.layout import StoreLayout


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What manifest and shard sizes need to know of the models, wherever they are; see `FrozenModels`."""

    records: tuple[ModelRecord, ...]
    channels: int
    vision_bytes: int

    @classmethod
    def of(cls, models: FrozenModels) -> "ModelFacts":
        """Those of loaded models."""
        return cls(records=models.records, channels=models.channels, vision_bytes=models.vision_bytes)


class Engine(Protocol):
    """Holds the models and writes shards. Made from (request, source) with the models loaded; RequestError if not."""

    @property
    def facts(self) -> ModelFacts:
        """What the models are."""
        ...

    def text_encoder(self) -> TextEncoder | None:
        """The recipe's text encoder in this process; None for a recipe without one."""
        ...

    def write(self, plans: Sequence[ShardPlan], layout: StoreLayout, tally: Tally, report: Reporter) -> None:
        """Extract and commit these shards. What was committed before an exception stays."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...
