"""The same convolution by the spconv package (Yan et al.), imported only when asked for."""

import spconv.pytorch as spconv
import torch
from torch import Tensor


class SpconvNeighbours:
    """One spconv index table for a level, built by the first convolution and shared by the others through its key.

    For CUDA: `resolve_sparse` keeps CPU tensors away. spconv's CPU kernels race with more than one OpenMP thread (wrong
    sums now and then), and spconv carries an OpenMP of its own, which `torch.set_num_threads` does not reach. The tests
    compare with them in a process started with OMP_NUM_THREADS=1.
    """

    def __init__(self, grid_N3: Tensor, cloud_N: Tensor, clouds: int, max_coordinate: int) -> None:
        """`grid_N3` int [N,3], `cloud_N` int [N] ascending, both on the device that computes."""
        self._tensor = spconv.SparseConvTensor(
            features=grid_N3.new_empty((len(grid_N3), 0), dtype=torch.float32),
            indices=torch.cat([cloud_N[:, None], grid_N3], dim=1).int().contiguous(),
            spatial_shape=[max_coordinate + 1] * 3,
            batch_size=clouds,
        )
        self._operators: dict[tuple[int, int], spconv.SubMConv3d] = {}

    def convolve(self, feat_NC: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """[N,C] -> [N,D]; the bias is added outside, because spconv's CPU kernels take none."""
        shape = (weight.shape[0], weight.shape[-1])
        if shape not in self._operators:
            with torch.device("meta"):  # its own weights are never used: allocate none
                self._operators[shape] = spconv.SubMConv3d(
                    shape[1], shape[0], kernel_size=3, bias=False, indice_key="stage"
                )
        operator = self._operators[shape]
        operator.weight = weight  # the parameter itself, so that gradients would reach it
        out = operator(self._tensor.replace_feature(feat_NC))
        self._tensor.indice_dict = out.indice_dict
        features: Tensor = out.features
        return features + bias
