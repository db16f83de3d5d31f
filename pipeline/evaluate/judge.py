"""`cla eval probe`: what a run's latents say of the true action, how its codebook is used, how well it decodes.

Probes are fitted on the clips that the run was trained on, and judged on clips that neither has seen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_specs.arrays import Array
from pipeline.config import FailedError, RequestError
from pipeline.evaluate.encoding import Encoder
from pipeline.evaluate.evidence import BASELINE, TARGET, Evidence, Reconstruction, action_names, gather, reconstruct
from pipeline.evaluate.probe import ProbeResult, one_hot, probe
from pipeline.evaluate.score import Score, ratio
from pipeline.evaluate.usage import CodeUsage
from pipeline.store.errors import StoreError
from pipeline.store.pairs import PairIndex

SOURCES = ("latent", "code", "continuous", "baseline")
"""What is probed: quantised latents, codes one-hot, latents before quantisation, pooled frozen features."""

MAX_PAIRS = 20_000
"""Pairs of either side that are looked at, at most, spread evenly over its clips."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judgement:
    """All that was measured of a run on a store.

    Attributes:
        run, store: what was judged, on what.
        offset: seconds between the frames of a pair.
        clips_fit, clips_held_out: clips with pairs on both sides. pairs_fit, pairs_held_out: pairs looked at.
        all_dimensions: names of the action's dimensions. dimensions: those that vary.
        probes: by source, see `SOURCES`.
        usage: of the codebook, over all pairs of both sides.
        decoder_vs_copy: squared error of the decoder on held-out clips as a share of that of copying the first frame,
            over all targets as the loss weighs them, with its 95 % interval over clips; by_target: each by itself.
        seed: of everything random in the probes.
    """

    run: dict[str, Any]
    store: dict[str, Any]
    offset: float
    clips_fit: int
    clips_held_out: int
    pairs_fit: int
    pairs_held_out: int
    all_dimensions: tuple[str, ...]
    dimensions: tuple[str, ...]
    probes: dict[str, ProbeResult]
    usage: CodeUsage
    decoder_vs_copy: float
    decoder_ci95: tuple[float, float]
    by_target: dict[str, float]
    seed: int

    @property
    def left_out(self) -> tuple[str, ...]:
        """Dimensions that do not vary, and count nowhere."""
        return tuple(name for name in self.all_dimensions if name not in self.dimensions)

    def linear(self, source: str) -> Score:
        """The ridge probe's score."""
        return self.probes[source].linear

    def mlp(self, source: str) -> Score:
        """The perceptron's score."""
        found = self.probes[source].mlp
        assert found is not None, "a judgement fits both probes"
        return found

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {
            "nmse": {name: self.linear(name).nmse for name in SOURCES},
            "nmse_mlp": {name: self.mlp(name).nmse for name in SOURCES},
            "ci95": {
                "nmse": {name: list(self.linear(name).ci95) for name in SOURCES},
                "nmse_mlp": {name: list(self.mlp(name).ci95) for name in SOURCES},
                "decoder_vs_copy": list(self.decoder_ci95),
            },
            "nmse_by_dimension": {
                "linear": {name: self.linear(name).by_dimension for name in SOURCES},
                "mlp": {name: self.mlp(name).by_dimension for name in SOURCES},
            },
            "mutual_information": {name: self.probes[name].mutual_information for name in SOURCES},
            "codes_used": self.usage.used,
            "perplexity": self.usage.perplexity,
            "perplexity_by_place": list(self.usage.perplexity_by_place()),
            "codes": len(self.usage.total),
            "decoder_vs_copy": self.decoder_vs_copy,
            "decoder_vs_copy_by_target": self.by_target,
            "target": TARGET,
            "baseline": BASELINE,
            "dimensions": list(self.dimensions),
            "dimensions_left_out": list(self.left_out),
            "offset_seconds": self.offset,
            "clips": {"fit": self.clips_fit, "held_out": self.clips_held_out},
            "pairs": {"fit": self.pairs_fit, "held_out": self.pairs_held_out},
            "run": self.run,
            "store": self.store,
            "seed": self.seed,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """A judgement with what a picture of it needs: the held-out pairs and what the model made of them."""

    judgement: Judgement
    pairs: PairIndex
    held_out: Evidence


def judge(
    encoder: Encoder,
    *,
    max_pairs: int = MAX_PAIRS,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Judged:
    """Judge a run on a store.

    Args:
        encoder: the run and the store.
        max_pairs: pairs of either side that are looked at, at most.
        seed: of folds, perceptron and resampling.
        progress: called with the number of encoded pairs and of all.

    Raises:
        RequestError: the store has no actions, no pairs at the run's offset, too few clips on a side, or actions that
            never vary.
        FailedError: the store is damaged.
    """
    pairs = encoder.pairs()
    fit_rows, held_rows = pairs_to_judge(encoder, pairs, max_pairs)
    try:
        total = len(fit_rows) + len(held_rows)
        fit = gather(encoder, pairs, fit_rows, lambda done: progress(done, total))
        held_out = gather(encoder, pairs, held_rows, lambda done: progress(len(fit) + done, total))
        reconstruction = reconstruct(encoder, pairs, held_rows)
    except StoreError as error:
        raise FailedError(f"The store cannot be read: {error} `cla inspect-shards --verify` says more.") from error
    names = action_names(encoder.store.manifest.dataset.name, fit.action.shape[1])
    try:
        probes = {source: _probe(source, fit, held_out, encoder.codes, names, seed) for source in SOURCES}
    except ValueError as error:
        raise RequestError(f"The store at {encoder.store.layout.url} cannot be probed: {error}.") from None
    codes = np.concatenate([fit.latents.codes, held_out.latents.codes])
    share, ci95, by_target = _decoder(encoder, reconstruction, seed)
    judgement = Judgement(
        run=encoder.run_facts(),
        store={
            "url": encoder.store.layout.url,
            "digest": encoder.store.digest,
            "dataset": encoder.store.manifest.dataset.name,
        },
        offset=encoder.offset,
        clips_fit=len(np.unique(fit.clip)),
        clips_held_out=len(np.unique(held_out.clip)),
        pairs_fit=len(fit),
        pairs_held_out=len(held_out),
        all_dimensions=names,
        dimensions=tuple(probes["latent"].linear.by_dimension),
        probes=probes,
        usage=CodeUsage.of(codes, encoder.codes),
        decoder_vs_copy=share,
        decoder_ci95=ci95,
        by_target=by_target,
        seed=seed,
    )
    return Judged(judgement=judgement, pairs=pairs, held_out=held_out)


def pairs_to_judge(encoder: Encoder, pairs: PairIndex, max_pairs: int = MAX_PAIRS) -> tuple[Array, Array]:
    """Rows of `pairs` to fit probes from and to judge them by: clips the run may have trained on, and the others.

    Raises:
        RequestError: a side has no clips.
    """
    sides = [_evenly(np.flatnonzero(np.isin(pairs.clip, clips)), max_pairs) for clips in encoder.sides()]
    for rows, what in zip(sides, ("to fit the probes from", "held out, to judge them by"), strict=True):
        if len(rows) == 0:
            raise RequestError(
                f"The store at {encoder.store.layout.url} has no clips with pairs {what}: extract more clips, or train "
                "with a greater share of them held out (split.validation)."
            )
    return sides[0], sides[1]


def _evenly(rows: Array, most: int) -> Array:
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]


def _probe(
    source: str, fit: Evidence, held_out: Evidence, codes: int, names: tuple[str, ...], seed: int
) -> ProbeResult:
    return probe(
        _features(source, fit, codes),
        fit.action,
        _features(source, held_out, codes),
        held_out.action,
        clip_train=fit.clip,
        clip_val=held_out.clip,
        names=names,
        standardise=source != "code",
        seed=seed,
    )


def _features(source: str, evidence: Evidence, codes: int) -> Array:
    if source == "code":
        return one_hot(evidence.latents.codes, codes)
    if source == "baseline":
        return evidence.baseline
    latents = evidence.latents.quantised if source == "latent" else evidence.latents.continuous
    return latents.reshape(len(latents), -1)


def _decoder(
    encoder: Encoder, errors: Reconstruction, seed: int
) -> tuple[float, tuple[float, float], dict[str, float]]:
    """Decoder against copy over all targets with its interval, and by target."""
    weights = encoder.model.targets.weights
    total_decoder, total_copy = (
        sum((weights[name] * errors.weight * part[name] for name in part), np.zeros(len(errors.weight)))
        for part in (errors.decoder, errors.copy)
    )
    if not total_copy.any():
        raise RequestError("Nothing moves in the held-out pairs: copying the first frame has no error to compare with.")
    share, ci95 = ratio(total_decoder, total_copy, errors.clip, seed=seed)
    by_target = {
        name: float((errors.weight * errors.decoder[name]).sum() / (errors.weight * errors.copy[name]).sum())
        for name in errors.copy
    }
    return share, ci95, by_target
