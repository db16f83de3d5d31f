"""The camera head of VGGT: a pose encoding per frame, refined in four rounds.

Shape legend
    B  clips    S  frames of a clip    C  width, twice that of the aggregator
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.vggt.blocks import Block, Mlp
from stages.vggt.config import VGGTConfig

POSE_DIM = 9
NUM_ROUNDS = 4


class CameraHead(nn.Module):
    """Camera tokens → pose encodings (Wang et al., VGGT, CVPR 2025, section 3.3).

    Each round embeds the last estimate, modulates the normalised camera tokens by it with a gate (adaLN: Peebles
    and Xie, DiT, ICCV 2023), and adds the change that a small transformer over the frames predicts.
    """

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        dim = 2 * config.embed_dim
        self.token_norm = nn.LayerNorm(dim)
        self.trunk = nn.ModuleList(Block(dim, config.camera_num_heads) for _ in range(config.camera_trunk_depth))
        self.trunk_norm = nn.LayerNorm(dim)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, POSE_DIM))
        self.embed_pose = nn.Linear(POSE_DIM, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.pose_branch = Mlp(dim, dim // 2, POSE_DIM)

    def forward(self, camera_BSC: Tensor) -> Tensor:
        """Camera tokens [B,S,C] → pose encoding [B,S,9]: translation 3, quaternion xyzw 4, field of view h, w.

        The field of view is in radians and passes a ReLU at the end: it can be 0.
        """
        camera_BSC = self.token_norm(camera_BSC)
        normalised_BSC = F.layer_norm(camera_BSC, camera_BSC.shape[-1:], eps=1e-6)
        pose_BS9: Tensor | None = None
        for _ in range(NUM_ROUNDS):
            last = self.empty_pose_tokens.expand(*camera_BSC.shape[:2], -1) if pose_BS9 is None else pose_BS9
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(last)).chunk(3, dim=-1)
            x = camera_BSC + gate * (normalised_BSC * (1 + scale) + shift)
            for block in self.trunk:
                x = block(x)
            change = self.pose_branch(self.trunk_norm(x))
            pose_BS9 = change if pose_BS9 is None else pose_BS9 + change
        assert pose_BS9 is not None
        return torch.cat((pose_BS9[..., :7], F.relu(pose_BS9[..., 7:])), dim=-1)
