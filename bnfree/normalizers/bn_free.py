"""Nothing behind the convolutions: standardised weights, alpha and beta keep the scale ("BNN - BN = ?")."""

from __future__ import annotations

from bnfree.normalizers import declare


@declare(standardize_weights=True, scale_branches=True)
def bn_free(channels: int) -> None:
    """Nothing.

    Source: Chen et al., arXiv 2104.08215, after Brock et al., arXiv 2101.08692.
    """
