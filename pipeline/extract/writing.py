"""Writing behind inference: a thread that puts clips into shards, in order, behind a bounded queue."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from data_specs.records import ClipRecord
from data_specs.shards import Sidecar
from pipeline.store.layout import StoreLayout
from pipeline.store.writer import ShardWriter

WAITING_CLIPS = 4


@dataclass(frozen=True, kw_only=True)
class _Item:
    shard: str
    record: ClipRecord | None = None
    rejected: tuple[str, str] | None = None
    last: bool = False


class WriterThread:
    """Writes shards in the order given. What goes wrong there is raised here, at the next call.

    `committed` is called in the thread with each sidecar. Use as a context, with `wait` as the last call: leaving it
    earlier drops the shard that is not complete, and nothing that is committed. After it the thread writes no more.
    """

    def __init__(self, layout: StoreLayout, committed: Callable[[Sidecar], None]) -> None:
        self.layout, self.committed = layout, committed
        self.seconds = 0.0
        self._queue: queue.Queue[_Item | None] = queue.Queue(maxsize=WAITING_CLIPS)
        self._error: BaseException | None = None
        self._stop = threading.Event()
        # not Thread.join: where KeyboardInterrupt ends that, Python takes the thread for ended, and it writes on
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def __enter__(self) -> "WriterThread":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._put(None, raising=False)
        self._ended.wait()

    def wait(self) -> None:
        """Return when all is written. An interrupt that comes in here still finds the end of the context."""
        self._put(None)
        self._ended.wait()
        self._raise()

    def add(self, shard: str, record: ClipRecord) -> None:
        """Add a clip to a shard; waits while the queue is full."""
        self._put(_Item(shard=shard, record=record))

    def reject(self, shard: str, key: str, reason: str) -> None:
        """Record a bad clip in the sidecar of a shard."""
        self._put(_Item(shard=shard, rejected=(key, reason)))

    def finish(self, shard: str) -> None:
        """Commit a shard: all its clips have been given."""
        self._put(_Item(shard=shard, last=True))

    def _put(self, item: _Item | None, raising: bool = True) -> None:
        while True:
            if raising:
                self._raise()
            if self._error is not None or self._ended.is_set():
                return
            try:
                self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue
            return

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._write_all()
        except BaseException as error:  # noqa: BLE001  whatever it is, it is raised again in the caller's thread
            self._error = error
        finally:
            self._ended.set()

    def _write_all(self) -> None:
        writer: ShardWriter | None = None
        while (item := self._queue.get()) is not None:
            if self._stop.is_set():
                continue
            start = time.perf_counter()
            if writer is None:
                writer = ShardWriter(self.layout, item.shard)
            assert writer.shard == item.shard, "shards are written one after the other"
            if item.record is not None:
                writer.add(item.record)
            if item.rejected is not None:
                writer.reject(*item.rejected)
            if item.last:
                sidecar = writer.commit()
                writer = None
                self.committed(sidecar)
            self.seconds += time.perf_counter() - start
        if writer is not None:
            writer.abort()
