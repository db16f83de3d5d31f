"""Recipes as typed, frozen values, and `key=value` overrides that know what was meant."""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from data_specs.datasets import FrameSampling, Geometry
from data_specs.shards import PART_NAME


class RequestError(Exception):
    """The request was wrong: arguments, config or missing input. The command line answers it with exit code 2."""


class FailedError(Exception):
    """The request was right and the work failed: a full disk, a dead process. Answered with exit code 1."""


class Config(BaseModel):
    """Base of every recipe part: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _numbers(value: Any) -> Any:
    """Numbers with commas between them, as an override gives them, with or without brackets."""
    return value.strip("[]() ").split(",") if isinstance(value, str) else value


Triple = Annotated[tuple[float, float, float], BeforeValidator(_numbers)]
"""x, y, z; as an override `0,0,0.1`."""


class VggtSection(Config):
    """Which VGGT runs. `weights`: a Hub repository, a local file or folder, `builtin`, or `random:SEED`.

    With `dtype=bfloat16` its aggregator runs under autocast, its heads in float32, as published; `compile` hands the
    aggregator's blocks to torch.compile. Both change what is stored in its last bits.
    """

    weights: str = "facebook/VGGT-1B"
    revision: str = "main"
    model: Literal["vggt_1b", "small", "tiny"] = "vggt_1b"
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False


class ConcertoSection(Config):
    """Which Concerto runs. `weights`: a Hub file `repository/file.pth`, a local file, `builtin`, or `random:SEED`.

    `model` is the architecture for random weights; a checkpoint brings its own. `grid` is the voxel's side in the
    normalised space, `levels` 1, 2 or 3 keeps 512, 896 or 1,088 channels (coarse feature with its parent levels).
    """

    weights: str = "Pointcept/Concerto/concerto_base.pth"
    revision: str = "main"
    model: Literal["base", "small", "large", "tiny"] = "base"
    dtype: Literal["float32", "bfloat16"] = "float32"
    sparse: Literal["builtin", "spconv", "auto"] = "builtin"
    grid: float = Field(default=0.02, gt=0)
    levels: int = Field(default=1, ge=1, le=3)


class GeometrySection(Config):
    """Where depth and camera come from.

    `vggt` runs frames one by one (a scale each), `vggt_window` up to `window` frames of a clip jointly (one scale),
    `sensor` takes depth and camera from the dataset.
    """

    source: Geometry = "vggt_window"
    window: int = Field(default=16, ge=1)


class PointsSection(Config):
    """From 50,176 pixels to the cloud that Concerto sees.

    A pixel counts when its depth is finite and positive and its confidence at least `min_conf`. A frame with fewer
    than `count` such pixels is padded (`too_few=pad`, the count recorded) or makes its clip bad (`reject`); under
    `min_points` it is bad in any case. A point moves when another frame of its clip looks through its place and sees
    something farther away, by more than the share `moving` of its depth.

    `normalise` fits the space to the cloud: `unit` to [-1, 1], `scene` to a height of 3. `fixed` fits nothing: it is
    (xyz - box_centre) * box_scale in the world's own units, the same for every frame of every clip, so that a metre
    stays a metre and a frame needs no other to be placed. With `crop`, half sides of a box around `box_centre` in the
    world's units (0: none), only points inside of it count.
    """

    count: int = Field(default=8192, ge=64, le=65535)
    sampling: Literal["random", "random_per_frame", "fps", "voxel"] = "random"
    min_conf: float = Field(default=0.0, ge=0)
    too_few: Literal["pad", "reject"] = "pad"
    min_points: int = Field(default=1024, ge=1)
    normalise: Literal["unit", "scene", "fixed"] = "unit"
    per: Literal["frame", "clip"] = "clip"
    normals: Literal["zeros", "depth"] = "zeros"
    moving: float = Field(default=0.025, gt=0, lt=1)
    box_centre: Triple = (0.0, 0.0, 0.0)
    box_scale: float = Field(default=1.0, gt=0)
    crop: Triple = (0.0, 0.0, 0.0)

    @property
    def cropped(self) -> bool:
        """Whether only points of a box count."""
        return self.crop != (0.0, 0.0, 0.0)

    @model_validator(mode="after")
    def _box(self) -> Self:
        if self.cropped and min(self.crop) <= 0:
            raise ValueError(f"crop={_triple(self.crop)}, expected three half sides above 0, or 0,0,0 for no box")
        return self


class TokensSection(Config):
    """How features are kept: as they are in float16, or as int8 with a scale for each channel of each frame.

    int8 takes half the bytes and costs about half a percent (`cla bench size` measures it); readers give float16 back.
    """

    dtype: Literal["float16", "int8"] = "float16"


class StoreSection(Config):
    """How much a shard holds and how its images are kept. `shard_mb` is a target for whole clips, not a bound.

    Without `points` no point is kept: tokens, cells, cameras and pictures are, which is all that latent actions need;
    clouds can then not be made again.
    """

    shard_mb: float = Field(default=256.0, gt=0)
    image: Literal["jpeg", "png"] = "jpeg"
    quality: int = Field(default=90, ge=1, le=100)
    points: bool = True


class BatchSection(Config):
    """How much goes through the models at a time.

    `clips` are worked on together, always the same ones, whatever the shards and workers are; about `frames` frames go
    through VGGT at a time (single ones, or windows of the same length), `clouds` frames through Concerto. More of each
    keeps a GPU busy. It is part of what is extracted: sums of floats differ in their last bits with the size of a
    batch, and with 1 clip what is stored depends on no other.
    """

    clips: int = Field(default=1, ge=1)
    frames: int = Field(default=4, ge=1)
    clouds: int = Field(default=4, ge=1)


class RobotSection(Config):
    """What a policy needs beside features.

    `chunk` control steps of action from each frame on, at the robot's own rate, whatever the frames' (0: none); the
    robot's whole way is then kept, too, and the statistics of state and action are those of all its steps. `live`:
    every frame goes through the models by itself, so that nothing that is stored of it depends on another, and a
    policy that acts sees, bit for bit, what it was trained on. `pointing`: say for every frame where the thing stands
    that the demonstration handles and where it brings it, found in hindsight (`stages.hindsight`); this needs depth of
    sensors and a state that begins with the grip point in their world.
    """

    chunk: int = Field(default=0, ge=0, le=4096)
    live: bool = False
    pointing: bool = False


class TextSection(Config):
    """Which frozen text encoder reads the instructions; none for empty `weights`.

    `weights`: a Hub repository (Qwen/Qwen3-0.6B-Base), a local folder in its format, or `random:SEED`, a small one of
    ours. `A|B` names a fallback: B where A cannot be had; which it was is recorded. An instruction counts up to
    `tokens` tokens.
    """

    weights: str = ""
    revision: str = "main"
    tokens: int = Field(default=77, ge=1, le=4096)
    dtype: Literal["float32", "bfloat16"] = "float32"


class VisionSection(Config):
    """Which frozen image encoders see the frames beside Concerto; each is a column `vision/NAME` of the store.

    `towers`: NAME=WEIGHTS with commas between, for example dinov2=facebook/dinov2-base,siglip=/models/siglip;
    WEIGHTS is a Hub repository (with @REVISION, if not main), a local folder in its format, or `random:SEED`; `A|B`
    names a fallback. Patch tokens are kept, row by row. `vggt`: also what VGGT's aggregator makes of each frame alone.
    """

    towers: str = ""
    vggt: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def named(self) -> dict[str, str]:
        """The description of each tower's weights by its name."""
        pairs = [entry.partition("=") for entry in self.towers.split(",") if entry.strip()]
        return {name.strip(): weights.strip() for name, _, weights in pairs}

    @model_validator(mode="after")
    def _names(self) -> Self:
        entries = [entry for entry in self.towers.split(",") if entry.strip()]
        for entry in entries:
            name, _, weights = (part.strip() for part in entry.partition("="))
            if not PART_NAME.fullmatch(name) or not weights:
                raise ValueError(
                    f"vision.towers has {entry.strip()!r}, expected NAME=WEIGHTS with a name of letters, digits, '_' "
                    "and '-', for example dinov2=facebook/dinov2-base"
                )
        if len(self.named) != len(entries) or (self.vggt and "vggt" in self.named):
            raise ValueError(f"vision.towers={self.towers} names a column twice; give each tower a name of its own")
        return self


LATER = (
    "robot",
    "robot.pointing",
    "text",
    "vision",
    "points.box_centre",
    "points.box_scale",
    "points.crop",
    "batch",
    "vggt.compile",
    "tokens",
    "store.points",
)
"""Keys that came after the first stores: at their defaults, a manifest does not name them."""


class ExtractRecipe(Config):
    """Everything that decides what `cla extract` writes. Workers, device and format do not."""

    name: str = "full"
    seed: int = Field(default=0, ge=0)
    max_bad_fraction: float = Field(default=0.05, ge=0, le=1)
    frames: FrameSampling = FrameSampling()
    geometry: GeometrySection = GeometrySection()
    vggt: VggtSection = VggtSection()
    concerto: ConcertoSection = ConcertoSection()
    points: PointsSection = PointsSection()
    tokens: TokensSection = TokensSection()
    store: StoreSection = StoreSection()
    robot: RobotSection = RobotSection()
    text: TextSection = TextSection()
    vision: VisionSection = VisionSection()
    batch: BatchSection = BatchSection()

    @model_validator(mode="after")
    def _frame_by_frame(self) -> Self:
        if self.robot.live and (problem := self.needs_other_frames()):
            raise ValueError(f"robot.live=true encodes each frame by itself, but {problem}")
        if self.robot.live and self.batch.clips > 1:
            raise ValueError(f"robot.live=true encodes each frame by itself, but batch.clips={self.batch.clips}")
        return self

    @model_validator(mode="after")
    def _one_world(self) -> Self:
        if self.robot.pointing and self.geometry.source != "sensor":
            raise ValueError(
                "robot.pointing=true finds what the hand handles by depth in the robot's own world, but "
                f"geometry.source={self.geometry.source}: choose geometry.source=sensor or robot.pointing=false"
            )
        return self

    def needs_other_frames(self) -> str | None:
        """Why a frame of this recipe depends on others of its clip, and what to change; None when it does not."""
        if self.geometry.source == "vggt_window" and self.geometry.window > 1:
            return "geometry.source=vggt_window lifts frames together: choose vggt or sensor"
        if self.points.per == "clip" and self.points.normalise != "fixed":
            return (
                f"points.normalise={self.points.normalise} with points.per=clip fits a space to the whole clip: choose "
                "points.normalise=fixed or points.per=frame"
            )
        return None

    def recorded(self) -> dict[str, Any]:
        """The recipe as a manifest keeps it: a store that uses nothing of `LATER` says what it said before them."""
        values, default = self.model_dump(mode="json"), type(self)().model_dump(mode="json")
        for name in LATER:
            *path, last = name.split(".")
            mine, theirs = values, default
            for part in path:
                mine, theirs = mine.get(part, {}), theirs[part]
            if last in mine and mine[last] == theirs[last]:
                del mine[last]
        return values


ConfigT = TypeVar("ConfigT", bound=Config)


def suggest(word: str, choices: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or an empty string when nothing is near."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def leaf_values(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by their dotted names."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            leaves |= leaf_values(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def leaf_names(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of all leaves of nested mappings."""
    return list(leaf_values(values, prefix))


def override(config: ConfigT, assignments: Iterable[str]) -> ConfigT:
    """A copy of `config` with `dotted.key=value` applied; RequestError says what is wrong and what was expected.

    A value is read as JSON where that works (numbers, true, null) and as a string otherwise; where a list is replaced,
    its values may have just commas between them.
    """
    values = config.model_dump(mode="json")
    known = leaf_names(values)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise RequestError(f"{assignment!r} is not an override: expected key=value, for example points.count=4096.")
        if name not in known:
            raise RequestError(f"Unknown key {name!r}.{suggest(name, known)} `--print-config` shows every key.")
        *path, last = name.split(".")
        section = values
        for part in path:
            section = section[part]
        section[last] = _parse_list(text) if isinstance(section[last], list) else _parse(text)
    try:
        return type(config).model_validate(values)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in problem['loc'])}={_shown(problem['input'])}: {problem['msg'].lower()}"
            if problem["type"] != "value_error"
            else problem["msg"].removeprefix("Value error, ")
            for problem in error.errors()
        ]
        raise RequestError("The recipe does not hold together: " + "; ".join(problems) + ".") from None


def _parse(text: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return text if isinstance(value, dict) else value


def _parse_list(text: str) -> list[Any]:
    value = _parse(text)
    if isinstance(value, list):
        return value
    return [_parse(part.strip()) for part in text.strip("[]() ").split(",") if part.strip()]


def _triple(values: tuple[float, float, float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."
