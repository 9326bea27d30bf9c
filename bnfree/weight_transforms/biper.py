"""Periodic binarisation: weights are signs of a sine of the latent ones.

Source: BiPer (Vargas et al., CVPR 2024, github.com/edmav4/BiPer), frequency 20. Deviation: the sine is standardised
like every weight of this project, so that both stages keep the scale of a BN-free network; the gain stands for
the learned output scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

FREQUENCY = 20.0


def biper(weight: Tensor) -> Tensor:
    """sin(20 v): the real weight of stage 1 (`binary_weights: false`), of which stage 2 takes the sign.

    The sign's gradient is that of the identity, so that the latent weight's is 20 cos(20 v) times that of the weight in
    both stages. Signs repeat where v goes on by 2 pi / 20: a latent weight can flip again by going on.
    """
    return torch.sin(FREQUENCY * weight)
