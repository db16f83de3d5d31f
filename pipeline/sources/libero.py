"""LIBERO (Liu et al., "LIBERO: Benchmarking Knowledge Transfer for Lifelong Robot Learning", NeurIPS 2023) as HDF5."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_specs.arrays import Array
from data_specs.datasets import ClipRef, DatasetSpec, FrameSampling
from data_specs.records import BadClip, Clip
from pipeline.foreign import BadJson, parse_json, shortened
from pipeline.sources.base import check_options, check_ref, check_split, text_problem, unique_keys
from pipeline.sources.frames import check_count, pick_indices
from pipeline.sources.hdf5 import (
    HDF5_SUFFIXES,
    check_pictures,
    member,
    names_in,
    numbers,
    open_hdf5,
    row,
    text_attribute,
)
from pipeline.sources.images import natural_order
from pipeline.sources.robot import VIEW_OPTIONS, RobotEpisode, Views, choice, fitted, robot_array, still_action
from pipeline.sources.walk import suffix_of, walk

CAMERAS = ("agentview", "eye_in_hand")
HZ = 20.0


class LiberoSource:
    """Demonstrations of LIBERO's suites: a clip for every `demo_i` of every HDF5 file.

    `root` is a folder of suites, the folder of one suite, or one file. The key of a clip is the file's path below the
    root without its suffix, and the demonstration: `libero_goal/put_the_bowl_on_the_stove_demo/demo_7`. The text is
    the instruction in the file's `problem_info`.

    `state` f4 [8] is what LIBERO policies use: the end effector's position (3, metres) and orientation (3,
    axis-angle) and the two fingers' positions. `action` f4 [7] moves the end effector in [-1, 1]; +1 closes the
    gripper. The pictures, recorded upside down, are turned by 180 degrees.

    LIBERO records an observation AFTER the step whose action has the same number: what leads on from observation i is
    action i + 1. It is paired so here: the first action, whose observation was not kept, is left out, and the last
    observation has a padded action (no motion, the gripper as before). Files that were recorded again with the
    observation before the step (as some of those without idle steps) need `observed=before`.

    Options: `view` (agentview or eye_in_hand), `views` (cameras for `Clip.views`, commas between), `views_size`
    (native, or pixels of a square), `observed` (after or before).
    """

    spec: ClassVar[DatasetSpec] = DatasetSpec(
        name="libero",
        title="LIBERO demonstrations",
        splits=(),
        where=(
            "Download the suites (libero_spatial, libero_object, libero_goal, libero_10, libero_90) as HDF5 from the"
            " Hub dataset yifengzhu-hf/LIBERO-datasets."
        ),
        licence="CC-BY 4.0",
        state_dim=8,
        action_dim=7,
    )
    root_suffixes: ClassVar[tuple[str, ...]] = HDF5_SUFFIXES

    def __init__(self, root: Path | None, split: str | None, options: Mapping[str, str]) -> None:
        if root is None:
            raise ValueError(f"Dataset 'libero' needs --root. {self.spec.where}")
        check_split(self.spec, split)
        check_options(self.spec, options, (*VIEW_OPTIONS, "observed"))
        self._views = Views.chosen(self.spec, options, CAMERAS, CAMERAS[0])
        self._after = choice(self.spec, options, "observed", ("after", "before")) == "after"
        self._root = root
        self._clips: tuple[ClipRef, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_clips": None}  # a worker is handed the clips that it reads

    def clips(self) -> Sequence[ClipRef]:
        """As in `Source`; ValueError where there is no HDF5 file, or none that is LIBERO's."""
        if self._clips is None:
            self._clips = self._list()
        return self._clips

    def read(self, ref: ClipRef, frames: FrameSampling) -> Clip:
        """As in `Source`; only the pictures that are taken are read."""
        import h5py

        check_ref(ref)
        assert ref.path is not None, f"clip {ref.key} has neither a path nor a problem"
        name = dict(ref.extra)["demo"]
        with open_hdf5(ref.key, ref.path) as file:
            demo = member(ref.key, file, f"data/{name}", h5py.Group, holder="the file")
            episode = self._episode(ref.key, demo, name)
            moments = len(_required(episode.action))
            time = np.arange(moments) / HZ
            taken = pick_indices(time, frames)
            check_count(ref.key, len(taken), frames, moments)

            def pictures(camera: str, size: int | None) -> Array:
                data = member(ref.key, demo, f"obs/{camera}_rgb", h5py.Dataset, holder=name)
                check_pictures(ref.key, data, moments, name=f"{name}/obs/{camera}_rgb")
                return np.stack([fitted(row(ref.key, data, i)[::-1, ::-1], size) for i in taken])

            return Clip(
                key=ref.key,
                split=ref.split,
                text=ref.text,
                time=time[taken],
                **self._views.pictures(pictures, frames.size),
                **episode.fields(taken),
            )

    def _episode(self, key: str, demo: Any, name: str) -> RobotEpisode:
        """The robot's arrays, each action with the observation that it leads on from."""
        import h5py

        def array(path: str, dims: int, rows: int | None = None) -> Array:
            data = member(key, demo, path, h5py.Dataset, holder=name)
            values = numbers(key, data, name=f"{name}/{path}")
            return robot_array(key, f"{demo.file.filename}: {name}/{path}", values, dims=dims, rows=rows)

        action = array("actions", self.spec.action_dim)
        parts = [array(f"obs/{part}", dims, len(action)) for part, dims in _STATE]
        if self._after:
            action = np.concatenate([action[1:], still_action(action, gripper=[-1])])
        return RobotEpisode(state=np.concatenate(parts, axis=1), action=action, hz=HZ, padded=self._after)

    def _list(self) -> tuple[ClipRef, ...]:
        if self._root.is_file():
            base, paths = self._root.parent, [self._root]
        else:
            base = self._root
            paths = [f.path / n for f in walk(base, follow=True) for n in (*f.files, *f.links) if _is_hdf5(n)]
        if not paths:
            raise ValueError(
                f"{self._root} holds no HDF5 file ({', '.join(HDF5_SUFFIXES)}); point --root at a folder of LIBERO's"
                f" suites, at one suite or at one file. {self.spec.where}"
            )
        names = [path.relative_to(base).with_suffix("").as_posix() for path in paths]
        found = [ref for path, name in zip(paths, names, strict=True) for ref in _demonstrations(path, name)]
        if all(ref.problem for ref in found):
            raise ValueError(f"{self._root} holds no demonstration of LIBERO: {found[0].problem}.")
        keys = unique_keys([f"{ref.path}:{ref.key}" for ref in found], [ref.key for ref in found])
        refs = [ClipRef(**{**vars(ref), "key": key}) for key, ref in zip(keys, found, strict=True)]
        return tuple(sorted(refs, key=lambda ref: ref.key))


_STATE = (("ee_pos", 3), ("ee_ori", 3), ("gripper_states", 2))


def _is_hdf5(name: str) -> bool:
    return suffix_of(name) in HDF5_SUFFIXES


def _required(array: Array | None) -> Array:
    assert array is not None
    return array


def _demonstrations(path: Path, name: str) -> list[ClipRef]:
    """The demonstrations of one file; of a file that cannot be used, one that says why."""
    import h5py

    try:
        with open_hdf5(name, path) as file:
            data = member(name, file, "data", h5py.Group, holder="the file")
            text = _instruction(name, data)
            demos = sorted((demo for demo in names_in(name, data) if demo.startswith("demo_")), key=natural_order)
    except BadClip as error:
        return [ClipRef(key=name, path=path, problem=error.reason)]
    if not demos:
        return [ClipRef(key=name, path=path, text=text, problem=f"{path}: the group 'data' has no demo_0, demo_1, ...")]
    return [
        ClipRef(key=f"{name}/{demo}", path=path, text=text, index=i, extra=(("demo", demo),))
        for i, demo in enumerate(demos)
    ]


def _instruction(key: str, data: Any) -> str:
    """The sentence in `problem_info`; some writers quote it or split it into words."""
    text = text_attribute(key, data, "problem_info", holder="the group 'data'")
    try:
        sentence = parse_json(text)["language_instruction"]
    except (BadJson, KeyError, TypeError) as error:
        raise BadClip(
            key,
            f"{data.file.filename}: the attribute problem_info is no JSON object with a language_instruction"
            f" ({error!r}); this is another layout",
        ) from None
    words = " ".join(sentence) if isinstance(sentence, list) and all(isinstance(w, str) for w in sentence) else sentence
    if not isinstance(words, str) or not words.strip(' "'):
        raise BadClip(
            key, f"{data.file.filename}: the language_instruction in problem_info is {shortened(repr(sentence))}"
        )
    if problem := text_problem(words):
        raise BadClip(key, f"{data.file.filename}: the language_instruction in problem_info {problem}")
    return words.strip().strip('"').strip()
