"""Which words of an instruction a slot takes, and what they say to look for.

Shape legend: B moments, L tokens, D channels of a token, S slots, E width, K of a query, T numbers of the task.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.detr import EncoderLayer, sine_positions_1d
from stages.language import LanguageTokens

_LONGEST_INSTRUCTION = 96


class Roles(nn.Module):
    """An instruction's tokens [B,L,D] → a query a slot [B,S,K] and what is to be done [B,T].

    `noise` is added in training: to the meanings of words, of deviation 1, and, as Gumbel noise, to which words a slot
    takes, so that it settles on one and does not average many that carry a trace of it.

    Learned roles, one a slot and one for the task, read the words, and the words each other; words are told apart by
    what they are and by where they stand, for the first thing named is not the second. That decides only *which* words
    a slot takes. What it looks for is made of those words as they are, by one network for all slots: a colour means
    the same of a thing and of a mat, and one that was seen with the other in few demonstrations is found.
    """

    positions: Tensor

    def __init__(self, dim: int, width: int, slots: int, key: int, task: int, noise: float) -> None:
        super().__init__()
        self.noise = noise
        self.project = nn.Linear(dim, width)
        self.role = nn.Parameter(torch.randn(1, slots + 1, width) * 0.5)
        self.register_buffer("positions", sine_positions_1d(_LONGEST_INSTRUCTION, width), persistent=False)
        self.layers = nn.ModuleList(EncoderLayer(width, 4, 2 * width, 0.0) for _ in range(2))
        self.look = nn.Linear(width, width)
        self.word = nn.LayerNorm(width)
        self.kind = nn.Parameter(torch.zeros(slots, width))
        self.query = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, key))
        self.task = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, task))

    def forward(self, language: LanguageTokens) -> tuple[Tensor, Tensor]:
        """[B,S,K] and [B,T]."""
        taken_BSL, task_BE = self.taken(language)
        known_BLE = self.word(self.project(language.tokens))
        if self.training and self.noise:
            known_BLE = known_BLE + self.noise * torch.randn_like(known_BLE)
        return self.query(taken_BSL @ known_BLE + self.kind), self.task(task_BE).tanh()

    def taken(self, language: LanguageTokens) -> tuple[Tensor, Tensor]:
        """What each slot takes of each word [B,S,L], sums to 1; and what the role of the task has read [B,E]."""
        words_BLE = self.project(language.tokens)
        x = torch.cat([self.role.expand(len(words_BLE), -1, -1), words_BLE], dim=1)
        roles, length = self.role.shape[1], words_BLE.shape[1]
        place = torch.cat([self.positions.new_zeros(roles, self.positions.shape[1]), self.positions[:length]])
        hidden = F.pad(~language.mask, (roles, 0), value=False)
        for layer in self.layers:
            x = layer(x, place, hidden)
        reader_BSE, task_BE, read_BLE = x[:, : roles - 1], x[:, roles - 1], x[:, roles:]
        logit_BSL = self.look(reader_BSE) @ read_BLE.transpose(1, 2) / math.sqrt(read_BLE.shape[-1])
        if self.training and self.noise:
            logit_BSL = logit_BSL - self.noise * torch.empty_like(logit_BSL).exponential_().clamp_min(1e-9).log()
        return logit_BSL.masked_fill(~language.mask[:, None], -1e4).softmax(-1), task_BE
