"""Which words slots take."""

import torch

from stages.language import LanguageTokens
from stages.roles import Roles


def instructions(*said: list[int], words: int = 12, dim: int = 16) -> LanguageTokens:
    """Tokens of instructions given as numbers of words."""
    table = torch.randn(words, dim, generator=torch.Generator().manual_seed(0))
    tokens = torch.stack([table[torch.tensor(one)] for one in said])
    return LanguageTokens(tokens=tokens, mask=torch.ones(tokens.shape[:2], dtype=torch.bool))


def roles(noise: float = 1.0) -> Roles:
    torch.manual_seed(0)
    return Roles(16, 16, 2, 8, 4, noise)


def test_training_reads_words_with_noise_and_acting_reads_them_as_they_are() -> None:
    said = instructions([1, 2, 3], [1, 4, 3])
    module = roles()
    assert not torch.equal(module(said)[0], module(said)[0])
    assert torch.equal(module(said)[1], module(said)[1])  # what is to be done is not touched
    module.eval()
    assert torch.equal(module(said)[0], module(said)[0])
    quiet = roles(noise=0.0)
    assert torch.equal(quiet(said)[0], module(said)[0])


def test_what_is_looked_for_does_not_depend_on_padding() -> None:
    said = instructions([1, 2, 3], [5, 4, 3])
    module = roles().eval()
    padded = LanguageTokens(
        tokens=torch.cat([said.tokens, torch.full((2, 3, 16), 9.0)], dim=1),
        mask=torch.cat([said.mask, torch.zeros(2, 3, dtype=torch.bool)], dim=1),
    )
    torch.testing.assert_close(module(padded)[0], module(said)[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(module(said)[0][0], module(said)[0][1])


def test_in_training_a_slot_draws_which_word_it_takes() -> None:
    said = instructions([1, 2, 3])
    module = roles()
    drawn = torch.stack([module.taken(said)[0][0] for _ in range(200)])
    module.eval()
    settled = module.taken(said)[0][0]
    # a draw favours some word; on average all have their turn, and what acts is the same every time
    assert drawn.amax(-1).mean().item() > settled.amax(-1).mean().item()
    assert drawn.mean(0).amin().item() > 0.05
    assert torch.equal(module.taken(said)[0][0], settled)
