import math

import pytest
import torch
from torch import Tensor

from stages.ensembling import ChunkExecution, TemporalEnsemble


def _chunks(steps: int, environments: int = 3, horizon: int = 4) -> Tensor:
    """Predictions f4 [T,E,H,A] made at steps 0..T-1."""
    return torch.randn(steps, environments, horizon, 2, generator=torch.Generator().manual_seed(0))


def _by_formula(chunks_TEHA: Tensor, step: int, environment: int, begin: int, decay: float) -> Tensor:
    """The ensembled action of `step`, from all predictions of it since `begin`, as the paper writes it."""
    horizon = chunks_TEHA.shape[2]
    made = [t for t in range(begin, step + 1) if step - t < horizon]  # oldest first
    weights = [math.exp(-decay * i) for i in range(len(made))]
    terms = [w * chunks_TEHA[t, environment, step - t] for w, t in zip(weights, made, strict=True)]
    return torch.stack(terms).sum(0) / sum(weights)


@pytest.mark.parametrize("decay", [0.01, 0.0, 0.7, -0.3])
def test_an_ensemble_is_the_weighted_mean_of_the_paper(decay: float) -> None:
    chunks, ensemble = _chunks(11), TemporalEnsemble(3, 4, decay)
    for step in range(11):
        assert ensemble.wanting().tolist() == [0, 1, 2]
        actions = ensemble.step(chunks[step])
        expected = torch.stack([_by_formula(chunks, step, e, 0, decay) for e in range(3)])
        torch.testing.assert_close(actions, expected)


def test_environments_begin_anew_by_themselves() -> None:
    chunks, ensemble = _chunks(9), TemporalEnsemble(3, 4, 0.5)
    begin = [0, 0, 0]
    for step in range(9):
        if step == 3:
            ensemble.reset(torch.tensor([1]))
            begin[1] = 3
        if step == 6:
            ensemble.reset()
            begin = [6, 6, 6]
        actions = ensemble.step(chunks[step])
        expected = torch.stack([_by_formula(chunks, step, e, begin[e], 0.5) for e in range(3)])
        torch.testing.assert_close(actions, expected)


def test_the_oldest_prediction_weighs_most() -> None:
    ensemble = TemporalEnsemble(1, 2, decay=1.0)
    ensemble.step(torch.tensor([[[5.0], [0.0]]]))
    action = ensemble.step(torch.tensor([[[1.0], [9.0]]]))
    torch.testing.assert_close(action, torch.tensor([[math.exp(-1) / (1 + math.exp(-1))]]))


@pytest.mark.parametrize("execute", [1, 3, 4, None])
def test_a_chunk_is_executed_for_its_first_steps(execute: int | None) -> None:
    chunks, execution = _chunks(12), ChunkExecution(3, 4, execute)
    every = execute or 4
    for step in range(12):
        fresh = step % every == 0
        assert execution.wanting().tolist() == ([0, 1, 2] if fresh else [])
        actions = execution.step(chunks[step] if fresh else None)
        assert torch.equal(actions, chunks[step - step % every, :, step % every])


def test_only_those_that_begin_anew_want_a_chunk() -> None:
    chunks, execution = _chunks(3), ChunkExecution(3, 4)
    execution.step(chunks[0])
    execution.reset(torch.tensor([2, 0]))
    assert execution.wanting().tolist() == [0, 2]
    actions = execution.step(chunks[1, [0, 2]])
    assert torch.equal(actions, torch.stack([chunks[1, 0, 0], chunks[0, 1, 1], chunks[1, 2, 0]]))
    assert execution.wanting().tolist() == []


def test_wrong_numbers_of_chunks_and_steps_are_refused() -> None:
    chunks = _chunks(1)[0]
    with pytest.raises(ValueError, match="0 chunks of 4 steps, expected 3 of 4"):
        ChunkExecution(3, 4).step()
    with pytest.raises(ValueError, match="2 chunks of 4 steps, expected 3 of 4"):
        TemporalEnsemble(3, 4).step(chunks[:2])
    with pytest.raises(ValueError, match="3 chunks of 3 steps, expected 3 of 4"):
        TemporalEnsemble(3, 4).step(chunks[:, :3])
    with pytest.raises(ValueError, match="cannot execute 5 steps of a chunk of 4"):
        ChunkExecution(3, 4, 5)
    with pytest.raises(ValueError, match="at least 1"):
        TemporalEnsemble(0, 4)


def test_what_was_predicted_is_not_changed() -> None:
    chunks = _chunks(1)[0]
    kept = chunks.clone()
    for execution in (TemporalEnsemble(3, 4), ChunkExecution(3, 4)):
        execution.step(chunks).add_(1)
        assert torch.equal(chunks, kept)
