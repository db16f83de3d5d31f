import json
from pathlib import Path
from typing import Any

import pytest
from headless_browser import open_page
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.evaluate.policy.judgement import Judgement
from pipeline.evaluate.policy.page import render_page
from pipeline.evaluate.policy.report import film_name
from pipeline.evaluate.policy.trials import Trial, TrialResult

Judged = tuple[dict[str, Any], Path, Path]


def invoke(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["eval", "policy", "--workers", "0", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    folder = tmp_path_factory.mktemp("judged")
    page, films = folder / "page.html", folder / "films"
    code, out, err = invoke(
        "--policy", "expert", "--episodes", 2, "--tasks", "reach,pick", "--seed", 3, "--json",
        "--html", page, "--films", films, "--film-episodes", 1,
    )  # fmt: skip
    assert code == 0, err
    assert f"wrote {page}" in err
    return json.loads(out), page, films


def test_the_command_prints_one_json_object_of_a_judgement(judged: Judged) -> None:
    found, _, _ = judged
    assert found["success"] == {"reach": 1.0, "pick": 1.0}
    assert found["ci95"]["reach"][1] == 1.0
    assert found["episodes"] == 2
    assert {"mean_length", "steps_per_s", "settings", "policy", "results"} <= set(found)
    assert found["settings"]["seed"] == 3


def test_films_and_page_are_written(judged: Judged) -> None:
    _, page, films = judged
    assert sorted(path.name for path in films.iterdir()) == [
        "pick-s3-000000-success.mp4",
        "reach-s3-000000-success.mp4",
    ]
    text = page.read_text()
    assert text.count("<video") == 2
    assert text.count('class="success"') == 4
    assert "{{" not in text


@pytest.mark.browser
def test_a_browser_shows_the_page_of_a_policy(judged: Judged, tmp_path: Path) -> None:
    text = open_page(judged[1], tmp_path).text
    assert "scripted expert" in text["h1"]
    assert {"Success by task", "Every episode", "Films"} <= set(text["h2"])


def test_a_person_gets_a_table_of_tasks() -> None:
    code, out, _ = invoke("--policy", "random", "--episodes", 1, "--tasks", "push", "--max-steps", 5)
    assert code == 0
    assert "0.0%" in out and "steps/s" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Missing --run"),
        (("--policy", "expert", "--run", "somewhere"), "needs no --run"),
        (("--policy", "expret"), "Did you mean 'expert'"),
        (("--policy", "expert", "--env", "tabeltop"), "Did you mean 'tabletop'"),
        (("--policy", "expert", "--tasks", "pik"), "Did you mean 'pick'"),
        (("--policy", "expert", "--camera", "unsen"), "Did you mean 'unseen'"),
        (("--policy", "random", "--execute-steps", "11"), "10 actions at a time"),
        (("--policy", "random", "--execute", "chnk"), "Did you mean 'chunk'"),
        (("--policy", "expert", "--html", "nowhere/page.html"), "There is no folder nowhere"),
        (("--policy", "expert", "--films", "nowhere/films"), "There is no folder nowhere"),
    ],
)
def test_a_wrong_request_for_a_judgement_is_answered_with_a_sentence(arguments: tuple[str, ...], said: str) -> None:
    code, out, err = invoke(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and said in err


def test_names_in_a_judgement_are_escaped() -> None:
    trial = Trial(number=0, task="<b>t</b>", seed=0, index=0)
    result = TrialResult(trial=trial, instruction="<script>x</script>", success=False, steps=3, film=b"film")
    judgement = Judgement(
        policy={"name": "<b>run</b>"},
        settings={"environment": "tabletop", "episodes": 1, "seed": 0, "camera": "seen", "distractors": False},
        results=(result,),
        seconds=1.0,
        seconds_of={},
        warnings=("<b>careful</b>",),
    )
    page = render_page(judgement)
    for name in ("<script>", "<b>run", "<b>t<", "<b>careful"):
        assert name not in page
    other = Trial(number=0, task="a/b:1", seed=0, index=0)
    assert "/" not in film_name(TrialResult(trial=other, instruction="", success=True, steps=1))
