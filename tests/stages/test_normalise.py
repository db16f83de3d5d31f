import json
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.normalise import ActionStateNormaliser, Mode

STATE = torch.tensor([[0.1, 2.0], [0.3, 4.0], [0.5, 6.0], [0.2, 9.0]])
ACTION = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.01, 30.0, 1.0]) + 2


def summary(values: Tensor) -> dict[str, Any]:
    """As `pipeline.extract.statistics` writes them, through JSON as a manifest goes."""
    values = values.double()
    low, high = torch.quantile(values, torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
    columns = {
        "mean": values.mean(0),
        "std": values.std(0, correction=0),
        "min": values.amin(0),
        "max": values.amax(0),
        "q01": low,
        "q99": high,
    }
    return json.loads(json.dumps({"count": len(values), **{name: c.tolist() for name, c in columns.items()}}))


def normaliser(action: Tensor, mode: Mode) -> ActionStateNormaliser:
    made = ActionStateNormaliser(state=2, action=action.shape[1], mode=mode)
    made.set_statistics({"split": "train", "state": summary(STATE), "action": summary(action)})
    return made


def test_each_mode_maps_to_what_it_says() -> None:
    standard = normaliser(ACTION, "mean_std").normalise_action(ACTION)
    torch.testing.assert_close(standard.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(standard.std(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)
    whole = normaliser(ACTION, "min_max").normalise_action(ACTION)
    torch.testing.assert_close(torch.stack([whole.amin(0), whole.amax(0)]), torch.tensor([[-1.0], [1.0]]).expand(2, 4))
    most = normaliser(ACTION, "quantile").normalise_action(ACTION)
    inside = (most.abs() <= 1 + 1e-5).float().mean(0)
    assert bool((inside > 0.97).all()) and bool((inside < 1).all())  # outliers are kept, outside of [-1, 1]


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantile"])
def test_actions_come_back_also_those_outside_of_the_data(mode: Mode) -> None:
    made = normaliser(ACTION, mode)
    wide = ACTION[None, :50] * 3
    torch.testing.assert_close(made.restore_action(made.normalise_action(wide)), wide, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantile"])
@pytest.mark.parametrize("constant", [0.0, 0.1, -3.7e-3, 250.0])
def test_a_constant_dimension_is_nothing_to_the_network_and_its_constant_to_the_robot(
    mode: Mode, constant: float
) -> None:
    action = ACTION.clone()
    action[:, 1] = constant
    made = normaliser(action, mode)
    assert bool((made.normalise_action(action)[:, 1] == 0).all())
    assert bool((made.normalise_action(action + 5)[:, 1] == 0).all())
    restored = made.restore_action(torch.randn(2, 10, 4))  # whatever the network makes of it
    assert bool((restored[..., 1] == action[0, 1]).all())
    assert bool(restored.isfinite().all())


def test_a_dimension_that_is_nearly_always_the_same_is_not_lost() -> None:
    action = ACTION.clone()
    action[:, 3] = -1.0
    action[:3, 3] = 1.0  # fewer than 1 %: both quantiles are -1
    made = normaliser(action, "quantile")
    torch.testing.assert_close(made.normalise_action(action)[:, 3], action[:, 3])


def test_statistics_are_in_the_checkpoint() -> None:
    made, fresh = normaliser(ACTION, "quantile"), ActionStateNormaliser(state=2, action=4)
    fresh.load_state_dict(made.state_dict())
    assert torch.equal(fresh.normalise_action(ACTION), made.normalise_action(ACTION))
    assert torch.equal(fresh.normalise_state(STATE), made.normalise_state(STATE))
    assert not torch.equal(fresh.normalise_state(STATE), STATE)


def test_what_does_not_fit_is_said() -> None:
    made = ActionStateNormaliser(state=2, action=7)
    whole = {"state": summary(STATE), "action": summary(ACTION)}
    with pytest.raises(ValueError, match="action have 4 dimensions and the policy was built for 7"):
        made.set_statistics(whole)
    with pytest.raises(ValueError, match="no state"):
        made.set_statistics({"action": whole["action"]})
    with pytest.raises(ValueError, match="no action"):
        made.set_statistics({**whole, "action": {"count": 0}})
    with pytest.raises(ValueError, match="actions have 4 dimensions"):
        made.normalise_action(ACTION[None])
    bad = ActionStateNormaliser(state=2, action=4)
    whole["action"]["q99"][2] = float("nan")
    with pytest.raises(ValueError, match="q99 that is not finite"):
        bad.set_statistics(whole)


def test_a_robot_without_a_state_needs_no_statistics_of_it() -> None:
    made = ActionStateNormaliser(state=0, action=4)
    made.set_statistics({"action": summary(ACTION)})
    assert made.state_width == 0 and made.action_width == 4
