"""What `cla train vla` does with its arguments."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_specs.shards import ModelRecord
from pipeline.config import RequestError, override
from pipeline.recipes import vla_recipe
from pipeline.train.first_weights import BackboneWeights, TrunkOfRun
from pipeline.train.launch import TrainRequest, refuse_other_data, train
from pipeline.train.loop import TrainSummary
from pipeline.train.policy_codes import CodesOfFrames, codes_of_frames, refuse_other_codes
from pipeline.train.policy_data import PolicyData
from pipeline.train.policy_examples import ExampleMoments
from pipeline.train.policy_recipe import ActRecipe, PolicyRecipe, VlaRecipe
from pipeline.train.policy_stores import PolicyStores
from pipeline.train.progress import Reporter
from pipeline.train.run import Run
from pipeline.train.shard_reading import with_order
from pipeline.train.vla import VlaTask
from stages.policy_table import PartRow, parameter_table

DEFAULT_RECIPE = "vla_3d"


@dataclass(frozen=True, kw_only=True)
class VlaSources:
    """What a policy is trained from: URLs of stores, files of codes, a run whose trunk it starts from.

    `example` trains on made-up moments, with nothing of these.
    """

    stores: tuple[str, ...] = ()
    codes: tuple[Path, ...] = ()
    init_from: Path | None = None
    example: bool = False


def choose_recipe(
    name: str, overrides: Sequence[str], *, weights: Sequence[float] = (), resumed: Path | None
) -> PolicyRecipe:
    """The named recipe with overrides; without a name, that of the run to be resumed, else `vla_3d`.

    `objective=…` is short for `model.objective=…`; `weights` are `data.weights`.
    """
    given = [f"model.{one}" if one.startswith("objective=") else one for one in overrides]
    if weights:
        given.append(f"data.weights={','.join(f'{weight:g}' for weight in weights)}")
    if name or resumed is None:
        return override(vla_recipe(name or DEFAULT_RECIPE), given)
    run = Run.open(resumed)
    recipe = run.typed_recipe
    if not isinstance(recipe, PolicyRecipe):
        raise RequestError(f"The run at {resumed} is of task {run.task}, not vla: name another --out.")
    return override(recipe, given)


def run_vla(recipe: PolicyRecipe, sources: VlaSources, request: TrainRequest, report: Reporter) -> TrainSummary:
    """Train on stores; to resume, on the run's own stores and codes where none are named."""
    if request.mode == "resume":
        return train(_resumed_task(recipe, sources, request.out), request, report)
    return train(open_task(recipe, sources), request, report)


def open_task(recipe: PolicyRecipe, sources: VlaSources) -> VlaTask:
    """The task of a new run.

    Raises RequestError for what does not fit together: stores, codes, recipe, the run to start from.
    """
    backbone = BackboneWeights.find(recipe.backbone) if isinstance(recipe, ActRecipe) else None
    facts: dict[str, Any] = {} if backbone is None else {"backbone": backbone.record.model_dump(mode="json")}
    if sources.example:
        return VlaTask(recipe, ExampleMoments(recipe), backbone=backbone, facts=facts)
    if not sources.stores:
        raise RequestError("Missing --store: what to train on, a folder or URL that `cla extract` has written.")
    recipe = recipe.model_copy(update={"data": with_order(recipe.data, sources.stores)})
    stores = PolicyStores.open(sources.stores, recipe.data)
    recipe = recipe.for_stores(stores.sizes)
    codes = _codes(recipe, sources.codes, stores)
    model = recipe.build_checked("meta")
    data = PolicyData(stores, recipe, (*model.columns, *model.targets), horizon=model.horizon, codes=codes)
    trunk = None
    if sources.init_from is not None:
        trunk = TrunkOfRun.open(sources.init_from, recipe, _models(stores))
        facts["init_from"] = trunk.describe()
    if codes is not None:
        facts["codes"] = codes.describe()
    return VlaTask(recipe, data, trunk=trunk, backbone=backbone, facts=facts, notes=data.chosen.notes)


def parameter_lines(recipe: PolicyRecipe, sources: VlaSources) -> Iterator[str]:
    """The parameters of the recipe's policy by part, trained and frozen, with the frozen models by name."""
    behind = recipe.encoders.behind()
    if sources.stores:
        stores = PolicyStores.open(sources.stores, with_order(recipe.data, sources.stores))
        recipe = recipe.for_stores(stores.sizes)
        behind = _behind(_models(stores))
    rows = parameter_table(recipe.build_checked("meta"), behind)
    yield f"{'part':24}{'trained':>14}{'frozen':>14}  note"
    for row in rows:
        yield _line(row)
    total = rows[-1]
    yield f"{recipe.name}: {total.trained / 1e6:.1f}M trained, {(total.frozen or 0) / 1e6:.1f}M frozen"


def _line(row: PartRow) -> str:
    frozen = "?" if row.frozen is None else f"{row.frozen:,}" if row.frozen else ""
    trained = f"{row.trained:,}" if row.trained else ""
    return f"{row.part:24}{trained:>14}{frozen:>14}  {row.note}".rstrip()


def _models(stores: PolicyStores) -> tuple[ModelRecord, ...]:
    return stores.stores[0].manifest.models


def _behind(models: Sequence[ModelRecord]) -> dict[str, str]:
    """The frozen model behind each column, by the roles of a store."""
    columns = {"text": "language", "concerto": "tokens", "vggt": "vision/vggt"}
    return {columns.get(model.role, model.role): model.name for model in models}


def _codes(recipe: PolicyRecipe, paths: Sequence[Path], stores: PolicyStores) -> CodesOfFrames | None:
    """The codes that are learned, or that actions are told by. RequestError where there are some without a use."""
    if recipe.latent and recipe.labels.pseudo:
        raise RequestError(
            "labels.pseudo gives the clips without labels actions, and objective=latent learns none: leave one out."
        )
    if recipe.latent:
        assert isinstance(recipe, VlaRecipe)
        return codes_of_frames(paths, stores, head=recipe.model.latent)
    if recipe.labels.pseudo:
        return codes_of_frames(paths, stores, head=None, latents=True)
    if paths:
        raise RequestError(
            "--codes are for objective=latent or labels.pseudo=true, and this recipe has neither: leave them out."
        )
    return None


def _resumed_task(recipe: PolicyRecipe, sources: VlaSources, out: Path) -> VlaTask:
    """The task of a run that goes on: what is not named is the run's."""
    run = Run.open(out)
    if sources.init_from is not None:
        raise RequestError("--init-from is where a new run starts; with --resume the run has its weights already.")
    if run.task != "vla":
        raise RequestError(f"The run at {out} is of task {run.task}, not vla: name another --out.")
    stores = sources.stores or tuple(store["url"] for store in run.store.get("stores", [run.store]))
    known = run.store.get("codes", {})
    codes = sources.codes or tuple(Path(name) for name in known.get("files", ()))
    example = not any(stores)
    if not example:
        opened = PolicyStores.open(stores)
        _refuse_other_robot(run, opened)
        refuse_other_data(out, run.store, opened.describe())
    task = open_task(recipe, VlaSources(stores=stores, codes=codes, example=example))
    if known:
        refuse_other_codes(known, dict(task.describe()["store"]["codes"]), out)
    return task.resumed(run.store)


def _refuse_other_robot(run: Run, stores: PolicyStores) -> None:
    """RequestError unless the stores' robot is the run's."""
    sizes = stores.sizes
    for name, mine in (("state", sizes.state), ("action", sizes.action)):
        theirs = run.config["model"][name]
        if theirs and mine and mine != theirs:
            raise RequestError(
                f"The run at {run.path} has {theirs} dimensions of {name} and {stores.named} has {mine}: another "
                "robot. Give the run's store to --resume, or name another --out."
            )
