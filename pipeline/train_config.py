"""What recipes of `cla train` share: how a run is optimised, what it reads, what it holds out."""

from typing import Literal

from pydantic import Field

from pipeline.config import Config


class TrainSection(Config):
    """How any task is optimised: AdamW, warm-up and cosine.

    `batch` is the samples of one process in one micro-batch; a step averages `accumulate` of them over all processes.
    `lr` is reached after `warmup` steps and falls to `lr * lr_final` at the last. Only matrices of linear maps decay.
    `clip` is the greatest gradient norm, `ema` the decay of the weights' moving average (0: off; when on, it is what
    is validated and used). `workers` load data in processes of their own, each `prefetch` batches ahead. `wandb` is a
    Weights & Biases project; empty for none. Every `validate_every` steps a checkpoint is written, too.
    """

    steps: int = Field(default=100_000, ge=1)
    batch: int = Field(default=64, ge=1)
    accumulate: int = Field(default=1, ge=1)
    lr: float = Field(default=1e-4, gt=0)
    lr_final: float = Field(default=0.1, ge=0, le=1)
    warmup: int = Field(default=1000, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    clip: float = Field(default=1.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    ema: float = Field(default=0.0, ge=0, lt=1)
    workers: int = Field(default=2, ge=0)
    prefetch: int = Field(default=4, ge=1)
    log_every: int = Field(default=50, ge=1)
    validate_every: int = Field(default=1000, ge=1)
    validate_samples: int = Field(default=2048, ge=0)
    wandb: str = ""


FREE_ON_RESUME = frozenset(
    [
        *(f"train.{key}" for key in ("steps", "workers", "prefetch", "log_every", "validate_every", "wandb")),
        "data.damaged",
        "data.check",
        "data.cache",
        "data.cache_gb",
    ]
)
"""Keys that a resumed run may change: how long and how it runs and reports, not what a step does."""


class DataSection(Config):
    """What is done about damaged shards before a run begins: `stop`, or `skip` them, say which, and go on; and how the
    stores are read.

    `check`: `sums` compares the SHA-256 of every file, which reads the whole store once; `sizes` only what can be seen
    without reading it. With `order=shards` and `damaged=stop`, shards behind a URL are compared when they arrive.

    `order`: `shuffled` draws from all samples at once; `shards` takes one shard after the other, in an order drawn anew
    for every epoch, and draws from a buffer of `buffer` samples (8192). Unset, it is `shards` where a store is behind a
    URL. Whole shards are then fetched ahead into the folder `cache` (unset: ~/.cache/cla/shards), which keeps at most
    `cache_gb` gigabytes (20) and may be shared by runs.
    """

    damaged: Literal["stop", "skip"] = "stop"
    check: Literal["sums", "sizes"] = "sums"
    # None and not a value: a run that was made before these keys reads as one that does not use them
    order: Literal["shuffled", "shards"] | None = None
    buffer: int | None = Field(default=None, ge=1)
    cache: str | None = None
    cache_gb: float | None = Field(default=None, gt=0)


class TrainRecipe(Config):
    """Base of the recipes of `cla train`: everything that decides what a run learns. Device and folders do not."""

    name: str
    seed: int = Field(default=0, ge=0)
    train: TrainSection = TrainSection()


class PairsSection(Config):
    """Which two frames make a sample: `offset` seconds apart, give or take up to `jitter`, drawn anew every epoch.

    `motion` is the weight of motion in the choice: 0 takes all pairs equally often, 1 in proportion to how much moves.
    """

    offset: float = Field(default=0.5, gt=0)
    jitter: float = Field(default=0.0, ge=0)
    motion: float = Field(default=0.0, ge=0, le=1)


class SplitSection(Config):
    """Which clips are held out. A store that has a validation split of its own keeps it; else `validation` is the
    share of clips that a hash of their keys holds out, the same in every store.
    """

    validation: float = Field(default=0.1, ge=0, lt=1)


class CodebookSection(Config):
    """What keeps the codes in use.

    Codes start as `init` says: `samples` of encoded training pairs, `kmeans` of them, or `random`. Codes that the last
    `replace_every` steps did not use are replaced by used ones, until `replace_until` of the run is done, so that the
    rest of it learns with a codebook that stays. `warn_below` is the share of the codes under which a perplexity is
    warned of.
    """

    init: Literal["samples", "kmeans", "random"] = "samples"
    init_samples: int = Field(default=2048, ge=1)
    replace_every: int = Field(default=100, ge=1)
    replace_until: float = Field(default=0.6, ge=0, lt=1)
    warn_below: float = Field(default=0.25, ge=0, le=1)


class LabelsSection(Config):
    """Supervision: the `fraction` of the training clips whose actions are seen, where a target asks for them."""

    fraction: float = Field(default=0.05, gt=0, le=1)
