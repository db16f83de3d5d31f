"""Latents of displacement: linear in how keypoints move, blind to where they are."""

from dataclasses import replace

import torch

from stages.keypoints import Keypoints, KeypointsConfig, Scene


def keypoints() -> Keypoints:
    torch.manual_seed(0)
    return Keypoints(KeypointsConfig(dim=8, slots=3, read=2, statistics=6, tokens=4, code_dim=2))


def scene(frames: int = 2, seed: int = 0) -> Scene:
    generator = torch.Generator().manual_seed(seed)
    return Scene(
        feat=torch.randn(5, frames, 196, 8, generator=generator),
        weight=torch.rand(5, frames, 196, generator=generator),
        coord=torch.rand(5, frames, 196, 3, generator=generator),
        statistics=torch.randn(5, frames, 6, generator=generator),
    )


def test_a_keypoint_of_one_cell_is_its_place() -> None:
    model, frames = keypoints(), scene()
    weight = torch.zeros_like(frames.weight)
    weight[:, :, 17] = 1e6
    places = model.of_frames(replace(frames, weight=weight)).unflatten(-1, (3, 5))[..., :3]
    torch.testing.assert_close(places, frames.coord[:, :, 17:18].expand_as(places), atol=1e-3, rtol=0)


def test_the_latent_is_the_same_wherever_the_motion_happens() -> None:
    model, frames = keypoints(), scene()
    torch.nn.init.zeros_(model.place.weight)  # a slot that looks by what things are, not where
    elsewhere = replace(frames, coord=frames.coord + torch.tensor([0.3, -0.2, 0.1]))
    torch.testing.assert_close(model(elsewhere), model(frames), atol=1e-5, rtol=0)


def test_back_is_the_opposite_of_there_and_two_steps_are_their_sum() -> None:
    model, frames = keypoints(), scene(frames=3)

    def latent(first: int, last: int) -> torch.Tensor:
        pick = [first, last]
        return model(Scene(**{name: value[:, pick] for name, value in vars(frames).items()}))

    torch.testing.assert_close(latent(1, 0), -latent(0, 1))
    torch.testing.assert_close(latent(0, 1) + latent(1, 2), latent(0, 2), atol=1e-5, rtol=1e-5)


def test_a_frame_in_which_nothing_moves_has_finite_keypoints_and_gradients() -> None:
    model, frames = keypoints(), scene()
    still = replace(frames, weight=torch.zeros_like(frames.weight))
    out = model(still)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_unknown_statistics_have_not_changed() -> None:
    model, frames = keypoints(), scene()
    unknown, same = frames.statistics.clone(), frames.statistics.clone()
    unknown[:, 0], same[:, 0] = torch.nan, same[:, 1]
    torch.testing.assert_close(model(replace(frames, statistics=unknown)), model(replace(frames, statistics=same)))
