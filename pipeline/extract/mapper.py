"""Clips through the frozen models: decoded frames in, what the store keeps out.

What is stored of a clip depends on the clip, the recipe and the weights, and on nothing else: not on the shard or the
worker. With `batch.clips` over 1 it depends, in the last bits of its floats, on the clips of its batch too, which are
the same in every run.
"""

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from data_specs.arrays import Array
from data_specs.quantise import quantise
from data_specs.records import BadClip, Cameras, Cells, Clip, ClipRecord, Points, Tokens
from pipeline.config import ExtractRecipe
from pipeline.extract.clouds import CloudEncoder, Lifted, Started
from pipeline.extract.encoders.towers import vggt_tokens
from pipeline.extract.geometry import check_sensors
from pipeline.extract.lanes import Lanes, Mark
from pipeline.extract.models import FrozenModels
from pipeline.extract.pack import (
    encode_images,
    pack_cells,
    pack_motion,
    pack_points,
    pack_tokens,
    pack_views,
)
from pipeline.extract.pointing import pack_pointing
from pipeline.extract.robot import pack_chunks

AHEAD = 1
"""Batches whose geometry a GPU is given before the clouds of the one before are looked at: it must never wait."""

PACKING = 3
"""Batches that threads of the host pack while a GPU goes on."""

Outcome = ClipRecord | BadClip


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A batch whose first models are queued. `problems` are of clips that none sees, by their places; `chunks` of the
    others are what a robot did from each frame on.
    """

    clips: tuple[Clip, ...]
    problems: dict[int, BadClip]
    chunks: dict[int, dict[str, Array]]
    started: Started | None
    seen: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A batch whose models are queued; what `lifted` and `seen` hold is in host memory once `ready` is reached."""

    clips: tuple[Clip, ...]
    problems: dict[int, BadClip]
    chunks: dict[int, dict[str, Array]]
    lifted: dict[int, Lifted]
    seen: dict[int, dict[str, Tensor]]
    ready: Mark
    kept: object
    """Whatever the device still reads until then."""


class Mapper:
    """Callable from `Clip` to `ClipRecord`; raises BadClip for a clip that cannot be used."""

    def __init__(self, recipe: ExtractRecipe, models: FrozenModels) -> None:
        self.recipe = recipe
        self.models = models
        self.lanes = Lanes(models.device)
        self.clouds = CloudEncoder(recipe, models, self.lanes)
        self._seconds = 0.0

    def __call__(self, clip: Clip) -> ClipRecord:
        """Everything that the store keeps of a clip."""
        (outcome,) = self.many([clip])
        if isinstance(outcome, BadClip):
            raise outcome
        return outcome

    def many(self, clips: Sequence[Clip]) -> list[Outcome]:
        """The same of some clips as one batch, in their order; BadClip in the place of one that cannot be used."""
        return next(iter(self.stream([clips])))

    def stream(self, batches: Iterable[Sequence[Clip]]) -> Iterator[list[Outcome]]:
        """The same of one batch after the other.

        On a GPU a batch is taken, and its first models queued, before the one before it is looked at, so that the
        device has work whenever the host must ask it for sizes; threads pack what it has done.
        """
        if not self.lanes.cuda:
            for batch in batches:
                yield self.pack_all(self.encode(self.begin(batch)))
            return
        begun: deque[Begun] = deque()
        packing: deque[Future[list[Outcome]]] = deque()
        pool = ThreadPoolExecutor(PACKING, thread_name_prefix="pack")
        try:
            for batch in batches:
                begun.append(self.begin(batch))
                if len(begun) > AHEAD:
                    packing.append(pool.submit(self.pack_all, self.encode(begun.popleft())))
                if len(packing) >= PACKING:
                    yield packing.popleft().result()
            while begun:
                packing.append(pool.submit(self.pack_all, self.encode(begun.popleft())))
            while packing:
                yield packing.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def seconds(self) -> float:
        """How long the device was busy so far; on a CPU, how long all this took."""
        return self.lanes.busy_s() if self.lanes.cuda else self._seconds

    @torch.inference_mode()
    def begin(self, batch: Sequence[Clip]) -> Begun:
        """Queue what needs no sizes: geometry and image encoders."""
        start = time.perf_counter()
        clips, problems = tuple(batch), dict[int, BadClip]()
        chunks: dict[int, dict[str, Array]] = {}
        for place, clip in enumerate(clips):
            try:
                chunks[place] = pack_chunks(clip, self.recipe.robot.chunk)
                self.read(clip)
                if self.recipe.geometry.source == "sensor":
                    check_sensors(clip)
            except BadClip as problem:
                problems[place] = problem
        started, seen = None, dict[str, Tensor]()
        good = [clip for place, clip in enumerate(clips) if place not in problems]
        if good and not self.recipe.robot.live:
            started = self.clouds.start(good)
            with self.lanes.busy():
                seen = self._see(started.rgb, self.models.vision, started.geometry.tokens)
        self._seconds += time.perf_counter() - start
        return Begun(clips=clips, problems=problems, chunks=chunks, started=started, seen=seen)

    @torch.inference_mode()
    def encode(self, begun: Begun) -> Fetched:
        """Queue the rest, and fetch it all."""
        start = time.perf_counter()
        problems = dict(begun.problems)
        lifted: dict[int, Lifted] = {}
        seen: dict[int, dict[str, Tensor]] = {}
        kept: list[object] = []
        places = [place for place in range(len(begun.clips)) if place not in problems]
        if begun.started is not None:
            outcomes = self.clouds.encode(begun.started, kept)
            for place, outcome, own in zip(places, outcomes, begun.started.frames(), strict=True):
                if isinstance(outcome, BadClip):
                    problems[place] = outcome
                else:
                    lifted[place] = outcome
                    seen[place] = {name: tokens[own] for name, tokens in begun.seen.items()}
        else:  # frame by frame
            for place in places:
                try:
                    lifted[place] = self.clouds.lift(begun.clips[place])
                except BadClip as problem:
                    problems[place] = problem
                    continue
                rgb = self.lanes.send(begun.clips[place].rgb)
                seen[place] = self._see(rgb, self.models.vision, lifted[place].geometry.tokens)
        kept += [begun, lifted, seen]
        host, ready = fetch(self.lanes, [(lifted[place], seen[place]) for place in lifted])
        self._seconds += time.perf_counter() - start
        return Fetched(
            clips=begun.clips,
            problems=problems,
            chunks=begun.chunks,
            lifted={place: pair[0] for place, pair in zip(lifted, host, strict=True)},
            seen={place: pair[1] for place, pair in zip(lifted, host, strict=True)},
            ready=ready,
            kept=kept,
        )

    @torch.inference_mode()
    def pack_all(self, fetched: Fetched) -> list[Outcome]:
        """Records of what is fetched."""
        if fetched.ready is not None:
            fetched.ready.synchronize()
        start = time.perf_counter()
        out: list[Outcome] = []
        for place, clip in enumerate(fetched.clips):
            if place in fetched.problems:
                out.append(fetched.problems[place])
                continue
            try:
                out.append(self._record(clip, fetched.chunks[place], fetched.lifted[place], fetched.seen[place]))
            except BadClip as problem:
                out.append(problem)
        if not self.lanes.cuda:
            self._seconds += time.perf_counter() - start
        return out

    def _record(self, clip: Clip, chunks: dict[str, Array], lifted: Lifted, seen: dict[str, Tensor]) -> ClipRecord:
        recipe = self.recipe
        tokens, cells, points, camera = self.pack(clip, lifted)
        pointing = pack_pointing(clip, lifted, recipe.points.moving) if recipe.robot.pointing else {}
        return ClipRecord(
            key=clip.key,
            split=clip.split,
            text=clip.text,
            time=clip.time.astype(np.float64),
            tokens=tokens,
            cells=cells,
            points=points,
            camera=camera,
            rgb=encode_images(clip.rgb, recipe.store.image, recipe.store.quality),
            state=clip.state,
            action=clip.action,
            is_pad=clip.is_pad,
            extra={
                **clip.extra,
                **chunks,
                **pointing,
                **pack_motion(lifted.frames, lifted.xyz, lifted.geometry, recipe.points.moving),
            },
            vision=_checked(clip, seen),
            views=pack_views(clip, recipe.store),
        )

    def read(self, clip: Clip) -> None:
        """Run the text encoder, if there is one; BadClip when it cannot say anything of the clip's instruction."""
        if self.models.text is not None:
            try:
                self.models.text.encode(clip.text)
            except ValueError as error:
                raise BadClip(clip.key, str(error)) from None

    def pack(self, clip: Clip, lifted: Lifted) -> tuple[Tokens, Cells, Points, Cameras]:
        """Clouds as the store keeps them. BadClip where features do not fit into float16."""
        geometry, frames = lifted.geometry, lifted.frames
        slots = self.recipe.points.count if self.recipe.store.points else 0
        points, depth_range, conf_range = pack_points(clip.rgb, frames, slots)
        tokens = pack_tokens(lifted.feats, frames)
        _check_finite(clip.key, "features", tokens.feat)
        if self.recipe.tokens.dtype == "int8":
            feat, scale = quantise(tokens.feat, tokens.offset)
            tokens = replace(tokens, feat=feat, scale=scale)
        camera = Cameras(
            intrinsic=geometry.intrinsic.cpu().numpy().astype(np.float32),
            extrinsic=geometry.extrinsic[:, :3].cpu().numpy().astype(np.float32),
            range=depth_range,
            conf_range=conf_range,
            normalisation=lifted.space.cpu().numpy().astype(np.float32),
        )
        return tokens, pack_cells(frames, clip.rgb.shape[1]), points, camera

    @torch.inference_mode()
    def see(self, clip: Clip, names: Collection[str], known: Tensor | None = None) -> dict[str, Array]:
        """Tokens f2 [F,N,D] of the image encoders of these names; `known` are VGGT's, where the geometry made them."""
        return _checked(clip, self._see(self.lanes.send(clip.rgb), names, known))

    def _see(self, rgb_FHW3: Tensor, names: Collection[str], known: Tensor | None) -> dict[str, Tensor]:
        models, recipe = self.models, self.recipe
        seen: dict[str, Tensor] = {}
        for name in names:
            parts: list[Tensor] = []
            dtype = recipe.vggt.dtype if name == "vggt" else recipe.vision.dtype
            for frames in torch.split(rgb_FHW3, 1 if recipe.robot.live else recipe.batch.frames):
                with torch.autocast(models.device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
                    if name != "vggt":
                        parts.append(models.towers[name](frames))
                    elif known is None:
                        assert models.vggt is not None, "tokens of VGGT need VGGT"
                        parts.append(vggt_tokens(models.vggt.vggt, frames.permute(0, 3, 1, 2).float() / 255))
            tokens = known if name == "vggt" and known is not None else torch.cat(parts)
            seen[name] = tokens.half()
        return seen


def _checked(clip: Clip, seen: dict[str, Tensor]) -> dict[str, Array]:
    out = {name: tokens.cpu().numpy() for name, tokens in seen.items()}
    for name, tokens in out.items():
        _check_finite(clip.key, f"{name} tokens", tokens)
    return out


def fetch(
    lanes: Lanes, pairs: Sequence[tuple[Lifted, dict[str, Tensor]]]
) -> tuple[list[tuple[Lifted, dict[str, Tensor]]], Mark]:
    """The same in host memory, once the mark is reached; on a CPU they are there."""
    if not lanes.cuda:
        return list(pairs), None
    tensors: list[Tensor] = []
    host: list[Tensor] = []

    def ask(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    def take(_: Tensor) -> Tensor:
        return host.pop(0)

    for lifted, seen in pairs:
        lifted.map(ask)
        tensors.extend(seen.values())
    fetched, ready = lanes.fetch(tensors)
    host.extend(fetched)
    return [(lifted.map(take), {name: take(tokens) for name, tokens in seen.items()}) for lifted, seen in pairs], ready


def _check_finite(key: str, what: str, array: Array) -> None:
    if not np.isfinite(array).all():
        raise BadClip(key, f"has {what} that are not finite in float16; expected magnitudes under 65504")
