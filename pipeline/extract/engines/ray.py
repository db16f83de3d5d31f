"""Shards written by Ray actors: each holds the models, one a GPU, and is handed a shard at a time.

Ray starts an actor again whose process or machine died, and gives it its shard again; what that shard had is not
committed, and is made anew. Nothing but names and counts goes through Ray: an actor reads the videos and writes to the
store by itself, so both must be reachable under the same path or URL from every machine.
"""

import importlib.util
import os
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipeline.config import FailedError, RequestError
from pipeline.extract.encoders.text import TextEncoder
from pipeline.extract.engines.base import ModelFacts
from pipeline.extract.engines.local import LocalEngine
from pipeline.extract.models import TEXT, load_models, parts_of
from pipeline.extract.partition import ShardPlan
from pipeline.extract.progress import Reporter, Tally
from pipeline.extract.request import ExtractRequest
from pipeline.sources.base import Source
from pipeline.store.layout import StoreLayout

AHEAD = 2
"""Shards that an actor has been handed: one it works on, and the next."""

RETRIES = 3
"""How often a shard is given again to an actor that died with it, before the run gives up."""

START_S = 600
"""How long the first actor may take to start and load its models."""

_POLL_S = 1.0

_END_S = 30.0
"""How long actors that were told to end are waited for."""


class RayEngine:
    """Actors in the cluster at `request.ray_address`, or in one that is started on this machine and ended with it.

    Raises:
        RequestError: Ray is not installed, there is no cluster at the address or it has fewer GPUs than actors, or
            the models cannot be loaded.
    """

    def __init__(self, request: ExtractRequest, source: Source) -> None:
        if importlib.util.find_spec("ray") is None:
            raise RequestError("--engine ray needs a package that is not installed: pip install 'concerto-laq[ray]'.")
        import ray

        self._request, self._owns = request, not ray.is_initialized()
        self._actors: list[Any] = []
        if self._owns:
            _connect(request)
        try:
            gpus = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
            on_gpu = request.device.startswith("cuda") or (request.device == "auto" and gpus > 0)
            count = request.actors or (max(gpus, 1) if on_gpu else 1)
            if on_gpu and count > gpus:
                raise RequestError(f"--actors {count} with one GPU each, and the Ray cluster has {gpus} GPUs.")
            remote = ray.remote(num_cpus=0, num_gpus=int(on_gpu), max_restarts=-1, max_task_retries=RETRIES)(ShardActor)
            self._actors = [remote.remote(request, source) for _ in range(count)]
            self.facts: ModelFacts = self._wait(self._actors[0].facts.remote())
        except BaseException:
            self.close()
            raise

    def _wait(self, reference: Any) -> Any:
        import ray

        try:
            return ray.get(reference, timeout=START_S)
        except ray.exceptions.GetTimeoutError:
            raise FailedError(
                f"No Ray actor has started and loaded its models in {START_S} s: see `ray status`."
            ) from None
        except ray.exceptions.RayTaskError as error:
            raise _cause(error) from None
        except ray.exceptions.RayActorError as error:
            raise _died(error, "starting") from None

    def text_encoder(self) -> TextEncoder | None:
        """The recipe's, loaded here when it is asked for."""
        if TEXT not in parts_of(self._request.recipe):
            return None
        import torch

        return load_models(self._request.recipe, torch.device("cpu"), parts={TEXT}).text

    def write(self, plans: Sequence[ShardPlan], layout: StoreLayout, tally: Tally, report: Reporter) -> None:
        """Hand out the shards, `AHEAD` an actor and the next to whoever is done."""
        import ray

        start, total, todo = time.perf_counter(), sum(len(plan.refs) for plan in plans), iter(plans)
        working: dict[Any, tuple[Any, ShardPlan]] = {}

        def hand_out(actor: Any) -> None:
            if plan := next(todo, None):
                working[actor.write.remote(layout, plan)] = actor, plan

        try:
            for actor in self._actors * AHEAD:
                hand_out(actor)
            while working:
                done, _ = ray.wait(list(working), num_returns=1, timeout=_POLL_S)
                for reference in done:
                    actor, plan = working.pop(reference)
                    try:
                        _add(tally, ray.get(reference))
                    except ray.exceptions.RayTaskError as error:
                        raise _cause(error) from None
                    except ray.exceptions.RayActorError as error:
                        raise _died(error, f"writing shard {plan.name}") from None
                    hand_out(actor)
                tally.wall_s = time.perf_counter() - start
                report.update(tally, total)
        finally:
            if working:  # whoever lists the store next must be the only one that writes to it
                self._end_actors()
                ray.wait(list(working), num_returns=len(working), timeout=_END_S)

    def _end_actors(self) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        import ray

        self._end_actors()
        if self._owns:
            ray.shutdown()


class ShardActor:
    """What runs in the cluster: the models, and the local engine over a shard at a time."""

    def __init__(self, request: ExtractRequest, source: Source) -> None:
        self._engine = LocalEngine(request, source)

    def facts(self) -> ModelFacts:
        """What the models are."""
        return self._engine.facts

    def write(self, layout: StoreLayout, plan: ShardPlan) -> Tally:
        """Write a shard. One that an earlier try committed, and could not say so, is only counted."""
        tally = Tally()
        if plan.name in layout.committed():
            (sidecar,) = layout.sidecars([plan.name])
            tally.shards, tally.bytes = 1, sidecar.file.bytes if sidecar.file else 0
            tally.clips, tally.frames = len(sidecar.rows), sum(row.frames for row in sidecar.rows)
            tally.rejected = len(sidecar.rejected)
            return tally
        layout.remove_leftovers({plan.name})
        self._engine.write([plan], layout, tally, _Silent())
        return tally


class _Silent(Reporter):
    def update(self, tally: Tally, total: int) -> None:
        pass


def _connect(request: ExtractRequest) -> None:
    import ray

    # the workers must import this very code and the datasets' modules, from wherever it runs
    paths = [str(Path(__file__).parents[3]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    shared: dict[str, Any] = {"configure_logging": False, "log_to_driver": True}
    try:
        if request.ray_address:
            ray.init(address=request.ray_address, **shared)
        else:
            ray.init(
                include_dashboard=False,
                object_store_memory=80 << 20,
                runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}},
                **shared,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"at --ray-address {request.ray_address}" if request.ray_address else "on this machine"
        raise RequestError(f"No Ray cluster {where} ({str(error).splitlines()[0]}).") from None


def _add(tally: Tally, part: Tally) -> None:
    for field in fields(Tally):
        if field.name not in ("wall_s", "skipped_clips"):
            setattr(tally, field.name, getattr(tally, field.name) + getattr(part, field.name))


def _cause(error: Any) -> Exception:
    """What went wrong in an actor, as it would be raised here."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, (FailedError, RequestError)):
        return cause
    return FailedError(f"A Ray actor failed: {str(error).strip().splitlines()[-1]} Committed shards are safe.")


def _died(error: Any, doing: str) -> FailedError:
    return FailedError(
        f"A Ray actor died {RETRIES + 1} times while {doing} ({str(error).splitlines()[0]}): not enough memory, or a "
        "crash in a codec. Committed shards are safe: go on with --resume."
    )
