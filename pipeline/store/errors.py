"""What can go wrong with a store, in sentences."""

from pipeline.config import FailedError, RequestError


class StoreError(FailedError):
    """A store could not be read or written. The message says what, where, and what to do."""


class StoreRequestError(StoreError, RequestError):
    """The request does not fit the store: no store there, one that exists already, another version or recipe."""


class TooLarge(StoreError):
    """A file of a store is longer than what is read of it."""


class ShardError(StoreError):
    """A shard is damaged. `shard` is its name, `array` the array at fault where that is known."""

    def __init__(self, shard: str, array: str | None, problem: str) -> None:
        super().__init__(f"Shard {shard}{f', array {array}' if array else ''}: {problem}")
        self.shard = shard
        self.array = array
        self.problem = problem

    def __reduce__(self) -> tuple[type["ShardError"], tuple[str, str | None, str]]:
        return (ShardError, (self.shard, self.array, self.problem))
