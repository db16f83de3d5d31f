"""Parquet files that somebody else made: what a header claims is looked at before anything of that size is read.

Of the metadata only the numbers of rows and of groups are asked for: where what it says of a column is damaged, the C++
exception goes through pyarrow's `RowGroupMetaData.column` and ends the process (26.0.1, found by fuzzing).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.foreign import UNREADABLE, shortened, unreadable

MAX_ROWS = 200_000_000
"""Of a file: twenty times the clips for which docs/scaling.md has measured an index."""

MAX_BYTES = 16 << 30
"""Of the columns that are read, unpacked."""


_MAX_GROUPS = 10_000_000


class BadTable(ValueError):
    """Not Parquet, damaged, or beyond the bounds. The message follows the file's name: `claims 10 rows, ...`."""


def open_parquet(source: Any, columns: Sequence[str] | None = None, *, most_rows: int = MAX_ROWS) -> Any:
    """A `pyarrow.parquet.ParquetFile` of which `columns` (None: all) may be read.

    Args:
        source: a path, or a buffer of Arrow's.
        columns: names; a nested column counts as a whole.
        most_rows: the most that may be claimed.

    Raises:
        BadTable: as above, or a column is missing. FileNotFoundError.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        if isinstance(source, Path) and source.exists() and not source.is_file():  # a pipe would be waited for
            raise BadTable("is not a regular file")
        file = parquet.ParquetFile(source)
        rows, groups = file.metadata.num_rows, file.metadata.num_row_groups
        names = list(file.schema_arrow.names)
    except (BadTable, FileNotFoundError):
        raise
    except unreadable(pyarrow.ArrowException) as error:
        raise BadTable(f"cannot be read as Parquet ({shortened(error)})") from error
    missing = [name for name in columns or () if name not in names]
    if missing:
        raise BadTable(f"has no column {missing[0]!r}; it has {shortened(', '.join(names))}")
    if not 0 <= rows <= most_rows or not 0 <= groups <= _MAX_GROUPS:
        raise BadTable(f"claims {rows:,} rows in {groups:,} groups, expected 0 to {most_rows:,}")
    return file


def read_parquet(
    source: Path,
    columns: Sequence[str] | None = None,
    *,
    where: tuple[str, int] | None = None,
    most_rows: int = MAX_ROWS,
    most_bytes: int = MAX_BYTES,
    batch: int = 16_384,
) -> Any:
    """Columns of a file as a `pyarrow.Table`, or those of its rows in which a column has a value.

    They are unpacked `batch` rows at a time: a value that is stored once may stand a million times.

    Raises:
        BadTable: as `open_parquet`, or when the rows become more than `most_bytes`. FileNotFoundError.
    """
    import pyarrow
    from pyarrow import compute

    asked = None if columns is None else list(columns)
    read = asked if where is None or asked is None else list(dict.fromkeys([*asked, where[0]]))
    file = open_parquet(source, read, most_rows=most_rows)
    batches, size = [], 0
    try:
        groups = list(range(file.metadata.num_row_groups))
        if where is not None and len(groups) > 1:
            groups = [number for number in groups if _holds(file, number, *where)]
        for found in file.iter_batches(batch_size=batch, row_groups=groups, columns=read, use_threads=False):
            some = found if where is None else found.filter(compute.equal(found[where[0]], where[1]))
            size += some.nbytes
            if size > most_bytes:
                raise BadTable(f"unpacks to more than the {most_bytes:,} bytes that are read of it")
            batches.append(some)
        names = file.schema_arrow.names if read is None else read
        schema = pyarrow.schema([file.schema_arrow.field(name) for name in names])
        table = pyarrow.Table.from_batches([some.select(names) for some in batches], schema)
        return table if asked is None else table.select(asked)
    except BadTable:
        raise
    except unreadable(pyarrow.ArrowException) as error:
        raise BadTable(f"cannot be read as Parquet ({shortened(error)})") from error


def _holds(file: Any, group: int, column: str, value: int) -> bool:
    """Whether a group of rows has rows with this value. By the values, for reading their statistics may abort."""
    from pyarrow import compute

    found = file.read_row_group(group, columns=[column], use_threads=False)[column]
    return bool(compute.any(compute.equal(found, value)).as_py())


def values_of(table: Any, column: str) -> list[Any]:
    """A column as Python's values. BadTable for text that is none."""
    try:
        return list(table[column].to_pylist())
    except UNREADABLE as error:
        raise BadTable(f"has a column {column!r} that cannot be read ({shortened(error)})") from error
