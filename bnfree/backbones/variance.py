"""The analytic variance of normaliser-free residual networks, and the betas that follow from it.

Source: Brock et al., ICLR 2021 (arXiv 2101.08692), section 3: h' = h + alpha * f(beta * h) with beta = 1 / sqrt(Var h).
Each unit adds alpha^2 to the variance; a transition (a unit that changes the resolution) feeds its shortcut with the
normalised input, so the variance restarts at 1 there. The `public_*` functions give the numbers of the public BNN_NoBN
code, whose rule differs; they serve `reference=True`.

The rule assumes that the trunk keeps its variance. In ReActNets it does not (PReLU and average pooling shrink it by up
to thirty times), which is why `bnfree.calibration` measures beta instead.
"""

from __future__ import annotations


def normalizer_free_betas(transitions: list[bool], alpha: float) -> list[float]:
    """Beta of every residual unit in order.

    Args:
        transitions: for each unit, whether it changes the resolution.
        alpha: factor of the residual branch.
    """
    betas, variance = [], 1.0
    for transition in transitions:
        betas.append(variance**-0.5)
        variance = (1.0 if transition else variance) + alpha**2
    return betas


def public_betas_reactnet18(blocks_per_stage: list[int], alpha: float) -> list[float]:
    """Betas of the public ReActNet-18: the first block of a stage does not add to the variance."""
    betas, variance = [], 1.0
    for stage, blocks in enumerate(blocks_per_stage):
        betas.append(variance**-0.5)
        if stage > 0:
            variance = 1.0
        for _ in range(1, blocks):
            betas.append(variance**-0.5)
            variance += alpha**2
    return betas


def public_betas_reactnet_a(transitions: list[bool], alpha: float) -> list[float]:
    """Betas of the public ReActNet-A: the variance restarts after both units of a transition block.

    Args:
        transitions: for each block of two units, whether it changes the resolution.
        alpha: factor of the residual branch.

    Returns:
        Two betas for each block.
    """
    betas, variance = [], 1.0
    for transition in transitions:
        betas += [variance**-0.5, (variance + alpha**2) ** -0.5]
        variance = 1.0 if transition else variance + 2 * alpha**2
    return betas
