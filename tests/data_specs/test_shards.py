import dataclasses

import pytest
from pydantic import ValidationError
from store_factory import small_manifest, small_record

from data_specs.records import Cameras, Cells, ClipRecord, Images, Points, Tokens
from data_specs.shards import ARRAYS, OFFSETS, Manifest, array_spec, differing_keys, offset_name

FAMILIES = {"tokens": Tokens, "cells": Cells, "points": Points, "camera": Cameras, "rgb": Images}


def test_the_schema_names_every_array_of_a_record_and_no_other():
    names = {f"{family}/{f.name}" for family, record in FAMILIES.items() for f in dataclasses.fields(record)}
    names |= {f.name for f in dataclasses.fields(ClipRecord)} - {
        *FAMILIES,
        "key",
        "split",
        "text",
        "extra",
        "vision",
        "views",
    }
    assert names == set(ARRAYS)
    assert set(OFFSETS.values()) == {name for name in ARRAYS if name.endswith("/offset")}
    assert all(spec.dims[0] in ("F", "F+1", *OFFSETS) and spec.doc and spec.units for spec in ARRAYS.values())


def test_arrays_of_encoders_and_cameras_are_known_by_their_names():
    for name, spec in ARRAYS.items():
        assert array_spec(name) is spec
    for name in ("vision/dinov2", "views/cam_high/data", "views/cam-high/offset"):
        assert array_spec(name).name == name
    for name in ("vision/", "vision/a/b", "views/a", "views/a/more", "views//data", "views/a.b/data", "extra/x", "x"):
        assert array_spec(name) is None
    assert offset_name("views/top/data") == "views/top/offset"
    assert offset_name("tokens/feat") == "tokens/offset"
    assert all(offset_name(name) is None for name in ("views/top/offset", "vision/dinov2", "time", "extra/x", "other"))


def test_example_records_fit_the_schema_and_are_functions_of_their_arguments():
    sizes = {"C": 16, "P": 96}
    record, again, other = small_record("a"), small_record("a"), small_record("b")
    for name, spec in ARRAYS.items():
        value = record
        for part in name.split("/"):
            value = getattr(value, part)
        if value is not None:
            spec.check(value, sizes)
    assert record.tokens.feat.tobytes() == again.tokens.feat.tobytes() != other.tokens.feat.tobytes()


def test_differing_keys_are_dotted_names():
    old = small_manifest()
    new = old.model_copy(
        update={
            "seed": 1,
            "recipe": {"name": "tiny", "frames": {"fps": 3.0, "max": 8}, "points": {"count": 96}, "more": True},
            "models": (old.models[0].model_copy(update={"sha256": "11"}),),
        }
    )
    assert differing_keys(old, old) == []
    assert differing_keys(old, new) == ["models.0.sha256", "recipe.frames.fps", "seed", "recipe.more"]


def test_a_store_may_go_on_when_its_data_moved_or_it_has_statistics():
    old = small_manifest()
    moved = old.model_copy(update={"dataset": old.dataset.model_copy(update={"root": "/scratch"})})
    assert differing_keys(old, moved) == []
    assert differing_keys(old, old.model_copy(update={"statistics": {"state": {"mean": [0.0]}}})) == []


def test_a_manifest_survives_json_and_refuses_what_it_does_not_know():
    manifest = small_manifest("webdataset")
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    with pytest.raises(ValidationError, match="seeed"):
        Manifest.model_validate({**manifest.model_dump(), "seeed": 1})
