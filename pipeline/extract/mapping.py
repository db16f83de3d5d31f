"""Decoded clips through the mapper, a batch at a time, in the order in which they come."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from data_specs.datasets import ClipRef
from data_specs.records import BadClip, Clip, ClipRecord
from pipeline.extract.decoding import Decoded
from pipeline.extract.mapper import Mapper
from pipeline.extract.robot import check_robot


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """What became of a listed clip: a record, or the reason why there is none. `seconds` is what decoding took."""

    ref: ClipRef
    record: ClipRecord | None
    reason: str | None
    seconds: float


def map_clips(
    mapper: Mapper, decoded: Iterator[Decoded], batches: Sequence[int], sizes: Mapping[str, int]
) -> Iterator[Mapped]:
    """Every decoded clip mapped; `batches` are how many of them, one after the other, make each batch.

    `sizes` are the store's, which robot data must fit. A clip that is bad leaves its place in the batch empty: no other
    one moves up, so that the rest of the listing is batched as if it were good.
    """
    waiting: deque[list[tuple[Decoded, str | None]]] = deque()

    def take() -> Iterator[list[Clip]]:
        for count in batches:
            group, clips = [], []
            for one in islice(decoded, count):
                reason = one.reason
                if one.clip is not None:
                    try:
                        check_robot(one.clip, sizes)
                    except BadClip as error:
                        reason = error.reason
                    else:
                        clips.append(one.clip)
                group.append((one, reason))
            waiting.append(group)
            yield clips

    for outcomes in mapper.stream(take()):
        results = iter(outcomes)
        for one, reason in waiting.popleft():
            record = None
            if reason is None:
                outcome = next(results)
                if isinstance(outcome, BadClip):
                    reason = outcome.reason
                else:
                    record = outcome
            yield Mapped(ref=one.ref, record=record, reason=reason, seconds=one.seconds)
