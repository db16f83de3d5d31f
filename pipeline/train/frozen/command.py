"""What `cla train tiny-frozen` does: films, a run for each of the two models, and the two files that the package ships.

OUT/films/{standing,all}    OUT/{concerto,vggt} (runs)    OUT/{concerto,vggt}_tiny.safetensors
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.config import Config, override
from pipeline.train.checkpoint import RunFolder
from pipeline.train.frozen import concerto, vggt
from pipeline.train.frozen.concerto import ConcertoRecipe, ConcertoTask
from pipeline.train.frozen.vggt import VggtRecipe, VggtTask
from pipeline.train.launch import Mode, TrainRequest, train
from pipeline.train.loop import TrainSummary
from pipeline.train.progress import Reporter

Which = Literal["concerto", "vggt"]
MODELS: tuple[Which, ...] = ("concerto", "vggt")


class TinyFrozenRecipe(Config):
    """Both models' recipes: overrides begin with `concerto.` or `vggt.`."""

    concerto: ConcertoRecipe = ConcertoRecipe()
    vggt: VggtRecipe = VggtRecipe()


@dataclass(frozen=True, kw_only=True)
class TinyFrozenSummary:
    """The runs, and the weights files made of them."""

    runs: tuple[TrainSummary, ...]
    weights: tuple[Path, ...]

    def as_json(self) -> dict[str, Any]:
        """The summary as plain values."""
        return {"runs": [run.as_json() for run in self.runs], "weights": [str(path) for path in self.weights]}

    def lines(self) -> Iterator[str]:
        """The summary as a person reads it."""
        for run, path in zip(self.runs, self.weights, strict=True):
            yield from run.lines()
            yield f"weights: {path}"


def choose_recipe(overrides: Sequence[str]) -> TinyFrozenRecipe:
    """The recipe with `overrides`."""
    return override(TinyFrozenRecipe(), overrides)


def run_tiny_frozen(
    recipe: TinyFrozenRecipe, out: Path, which: Sequence[Which], *, mode: Mode, device: str, report: Reporter
) -> TinyFrozenSummary:
    """Train the models `which`, one after the other, and write their weights. Films that are there are used again."""
    runs, weights = [], []
    for model in which:
        # an interruption during the first model leaves nothing of the second to go on with
        begun = RunFolder(out / model).exists()
        request = TrainRequest(out=out / model, mode=mode if begun or mode != "resume" else "new", device=device)
        path = out / f"{model}_tiny.safetensors"
        if model == "concerto":
            films = out / "films" / "standing"
            _make(concerto.make_standing_films(films, recipe.concerto.clouds), recipe.concerto.clouds.films, report)
            runs.append(train(ConcertoTask(recipe.concerto, films), request, report))
            concerto.ship(request.out, path)
        else:
            films = out / "films" / "all"
            _make(vggt.make_films(films, recipe.vggt.films), recipe.vggt.films.count, report)
            runs.append(train(VggtTask(recipe.vggt, films), request, report))
            vggt.ship(request.out, path)
        weights.append(path)
    return TinyFrozenSummary(runs=tuple(runs), weights=tuple(weights))


def _make(films: Iterable[int], total: int, report: Reporter) -> None:
    for count in films:
        report.update(count, total)
