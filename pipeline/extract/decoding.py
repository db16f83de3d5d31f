"""Decoding ahead of inference: in worker processes, bounded, and in the order asked for."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from data_specs.datasets import ClipRef, FrameSampling
from data_specs.records import BadClip, Clip
from pipeline.config import FailedError, RequestError
from pipeline.processes import worker_pool
from pipeline.sources.base import Source


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A clip, or the reason why there is none; `seconds` is what decoding took in its process."""

    ref: ClipRef
    clip: Clip | None
    reason: str | None
    seconds: float


class DecodingError(FailedError):
    """A decoding process died: a codec crashed or the machine ran out of memory."""


def decode_ahead(
    source: Source, refs: Iterable[ClipRef], frames: FrameSampling, *, workers: int, ahead: int | None = None
) -> Iterator[Decoded]:
    """Decoded clips in the order of `refs`, at most `ahead` of them waiting (default: two a worker, and one).

    `workers` processes decode; 0 means one thread of this process. Raises DecodingError when a process dies.
    """
    if workers < 0:
        raise RequestError(f"--workers {workers} makes no sense: expected 0 (decode in this process) or more")
    executor: Executor = ThreadPoolExecutor(1) if workers == 0 else worker_pool(workers)
    waiting: deque[tuple[ClipRef, Future[Decoded]]] = deque()
    limit = ahead or 2 * max(workers, 1) + 1
    remaining = iter(refs)
    try:
        for ref in remaining:
            waiting.append((ref, _submit(executor, source, ref, frames)))
            if len(waiting) >= limit:
                yield _result(waiting)
        while waiting:
            yield _result(waiting)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _submit(executor: Executor, source: Source, ref: ClipRef, frames: FrameSampling) -> "Future[Decoded]":
    try:
        return executor.submit(_decode, source, ref, frames)
    except BrokenProcessPool:
        raise _died(ref) from None


def _result(waiting: "deque[tuple[ClipRef, Future[Decoded]]]") -> Decoded:
    ref, future = waiting.popleft()
    try:
        return future.result()
    except BrokenProcessPool:
        raise _died(ref) from None


def _died(ref: ClipRef) -> DecodingError:
    return DecodingError(
        f"A decoding process died at or shortly after clip {ref.key}: a crash in a codec, or not enough memory. "
        "Committed shards are safe: run again with --resume, with fewer --workers if memory is short."
    )


def _decode(source: Source, ref: ClipRef, frames: FrameSampling) -> Decoded:
    start = time.perf_counter()
    clip, reason = None, None
    try:
        clip = source.read(ref, frames)
    except BadClip as error:
        reason = error.reason
    return Decoded(ref=ref, clip=clip, reason=reason, seconds=time.perf_counter() - start)
