import multiprocessing
import time
from contextlib import closing

import numpy as np
import pytest
from policy_stand_ins import Broken, DeadlyEyes, DimEyes, Downwards, StateEyes

from pipeline.config import FailedError, RequestError
from pipeline.evaluate.policy.environment import EnvironmentOptions
from pipeline.evaluate.policy.execution import Execution
from pipeline.evaluate.policy.hands import LocalHands, ProcessHands
from pipeline.evaluate.policy.judge import JudgeRequest, judge, problems
from pipeline.evaluate.policy.references import RandomPolicy
from pipeline.evaluate.policy.rollout import RollOut, roll_out
from pipeline.evaluate.policy.slots import EyesMaker, SlotsSetup
from pipeline.evaluate.policy.tabletop import TABLETOP
from pipeline.evaluate.policy.trials import Look, Start, plan_trials


def setup(eyes: EyesMaker | None = None) -> SlotsSetup:
    options = EnvironmentOptions(views=("agent",), render_size=28, max_steps=9)
    return SlotsSetup(environment="tabletop", options=options, eyes=eyes)


def roll(policy: Downwards | Broken, hands: LocalHands | ProcessHands, *, slots: int = 3) -> RollOut:
    trials = plan_trials(("push", "pick"), 2, seed=1, films=1)
    execution = Execution.choose("chunk", min(3, policy.horizon), policy.horizon)
    with closing(hands):
        return roll_out(trials, hands, policy, execution=execution, slots=slots)


def outcomes(rolled: RollOut) -> list[tuple[int, str, bool, int]]:
    return [(r.trial.number, r.instruction, r.success, r.steps) for r in rolled.results]


def test_a_policy_is_asked_at_chunk_boundaries_of_all_slots_at_once() -> None:
    policy = Downwards()
    rolled = roll(policy, LocalHands(setup(StateEyes())))
    assert [(r.trial.number, r.steps, r.success) for r in rolled.results] == [(n, 9, False) for n in range(4)]
    # three slots from the start; the fourth trial begins in the round after one is free
    assert policy.batches[:3] == [[(n, step) for n in range(3)] for step in (0, 3, 6)]
    assert policy.batches[3:] == [[(3, 0)], [(3, 3)], [(3, 6)]]
    assert len(set(policy.keys)) == len(policy.keys)
    assert [r.film is not None for r in rolled.results] == [True, False, True, False]
    assert rolled.steps == 36


def test_results_do_not_depend_on_how_many_processes_there_are() -> None:
    one, two = Downwards(), Downwards()
    local = roll(one, LocalHands(setup(StateEyes())))
    apart = roll(two, ProcessHands(setup(StateEyes()), 2))
    assert outcomes(local) == outcomes(apart)
    assert (one.batches, one.keys) == (two.batches, two.keys)


def test_a_process_that_dies_is_answered_with_a_sentence_and_leaves_nothing_behind() -> None:
    with pytest.raises(FailedError, match="died, perhaps for lack of memory"):
        roll(Downwards(), ProcessHands(setup(DeadlyEyes(look=2)), 2))
    assert not multiprocessing.active_children()


def test_a_process_that_hangs_is_ended() -> None:
    hands = ProcessHands(setup(DeadlyEyes(look=1, hang=True)), 1, limit_s=4.0, patience_s=0.5)
    begin = time.monotonic()
    with pytest.raises(FailedError, match="not answered for 4 s and was ended"):
        roll(Downwards(), hands)
    assert not multiprocessing.active_children()
    assert time.monotonic() - begin < 200  # the process sleeps for longer


def test_what_goes_wrong_in_a_process_is_told_as_it_was() -> None:
    hands = ProcessHands(SlotsSetup(environment="tabeltop", options=EnvironmentOptions()), 1)
    with closing(hands), pytest.raises(RequestError, match="Did you mean 'tabletop'"):
        hands.round([Start(0, plan_trials(("reach",), 1, seed=0, films=0)[0])])


def test_actions_that_are_not_finite_are_refused() -> None:
    with pytest.raises(FailedError, match="not finite at step 0 of episode 0 of push"):
        roll(Broken(), LocalHands(setup(StateEyes())))


def test_an_observation_that_cannot_be_used_ends_an_episode_and_is_told() -> None:
    rolled = roll(Downwards(), LocalHands(setup(DimEyes(step=3))))
    assert [(r.steps, r.success, r.problem) for r in rolled.results] == [(3, False, "frame 0 has 3 usable points")] * 4
    (told,) = problems(rolled.results)
    assert told.startswith("4 of 4 episodes ended, as failures") and "3 usable points" in told
    assert problems(roll(Downwards(), LocalHands(setup(StateEyes()))).results) == ()


def test_random_actions_are_of_each_episode_and_step_their_own() -> None:
    policy, trials = RandomPolicy(TABLETOP, 3), plan_trials(("reach",), 2, seed=3, films=0)
    looks = [Look(trial=trial, step=step, seen=None) for trial in trials for step in (0, 10)]
    chunks = policy.act(looks)
    assert chunks.shape == (4, 10, 7)
    assert len(np.unique(chunks)) > 270
    assert chunks.min() < -0.9 and chunks.max() > 0.9
    np.testing.assert_array_equal(policy.act(looks[2:3])[0], chunks[2])


def test_the_expert_gets_everything_and_random_actions_next_to_nothing() -> None:
    expert = judge(JudgeRequest(policy="expert", episodes=5, seed=11, workers=0))
    assert expert.as_json()["success"] == {"reach": 1.0, "push": 1.0, "pick": 1.0}
    random = judge(
        JudgeRequest(policy="random", episodes=4, seed=11, workers=0, tasks="push,pick", max_steps=100)
    ).as_json()
    assert random["success"] == {"push": 0.0, "pick": 0.0}
    assert random["mean_length"] == {"push": 100.0, "pick": 100.0}
