"""One writer a store: who comes second is refused in a sentence, and nobody waits for a dead one."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from store_factory import small_store

from pipeline.store import StoreError, StoreRequestError
from pipeline.store.lock import refuse_busy, write_lock
from pipeline.store.verify import verify

HOLD = """
import sys
from pipeline.store.lock import write_lock
with write_lock(sys.argv[1], sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(store: Path, part: str = "") -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store), part], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


def test_a_second_writer_is_refused_by_name_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    with holder(tmp_path / "s") as process:
        for refused in (write_lock(str(tmp_path / "s")), write_lock(str(tmp_path / "s"), "1-of-2")):
            with pytest.raises(StoreRequestError, match=r"Another process writes to .*--resume"), refused:
                pass
        with pytest.raises(StoreRequestError, match=f"process {process.pid} on "):
            refuse_busy(str(tmp_path / "s"))
        process.kill()
        process.wait(timeout=60)
        assert [path.name for path in (tmp_path / "s").iterdir()] == ["writing.tmp-lock"]
        with write_lock(str(tmp_path / "s")):
            pass
    assert list((tmp_path / "s").iterdir()) == []


def test_parts_share_a_store_each_once_and_the_last_one_leaves_nothing(tmp_path: Path) -> None:
    store = str(tmp_path / "s")
    with holder(tmp_path / "s", "1-of-2"):
        with write_lock(store, "2-of-2"):
            pass
        for part in ("", "1-of-2"):
            with pytest.raises(StoreRequestError, match="Another process writes"), write_lock(store, part):
                pass
        inner = ExitStack()
        inner.enter_context(write_lock(store, "2-of-2"))
    inner.close()
    assert list((tmp_path / "s").iterdir()) == []


def test_a_lock_is_no_damage_and_no_leftover(tmp_path: Path) -> None:
    layout = small_store(tmp_path / "s")
    with write_lock(layout.url):
        assert verify(layout) == []
        assert layout.remove_leftovers() == []
        small_store(tmp_path / "s", mode="overwrite")
        assert (tmp_path / "s/writing.tmp-lock").exists()
    assert not (tmp_path / "s/writing.tmp-lock").exists()


def test_what_cannot_be_locked_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreRequestError, match="is a file"), write_lock(str(tmp_path / "file")):
        pass
    with pytest.raises(StoreError, match="Could not write"), write_lock(str(tmp_path / "file" / "s")):
        pass
    refuse_busy(str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()
    with write_lock("memory://locked"):  # behind a URL there is no lock
        pass
