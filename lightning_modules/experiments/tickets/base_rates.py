"""How much of an owner's mark is there by chance, and when that is too much."""

from __future__ import annotations

from bnfree.tickets import Masks, Signature, Verification, occupancy

# Beyond these occupancies one of the two values of a bit is there by chance in more than four of five kernels.
NEAR_HALF = (0.2, 0.8)


def base_rate(found: Verification) -> str:
    """How much of a mark is there by chance."""
    return (
        f"{found.occupied:.3f} of the kernels in these layers have a survivor, so that by chance {found.expected:.1f} "
        f"of {found.bits} bits agree"
    )


def warning(masks: Masks, signature: Signature, found: Verification) -> str:
    """What is to be said of layers whose base rate is far from one half, with the numbers; empty if there is none."""
    shares = {name: occupancy(masks[name]).double().mean().item() for name in signature.layers if name in masks}
    far = {name: share for name, share in shares.items() if not NEAR_HALF[0] <= share <= NEAR_HALF[1]}
    if not far:
        return ""
    bits = sum(signature.layers[name][2] for name in far)
    low, high = min(far.values()), max(far.values())
    rates = f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"
    full = high > NEAR_HALF[1]
    return (
        f"the base rate is far from one half in {len(far)} of {len(shares)} marked layers ({rates}; {bits} of "
        f"{found.bits} bits): a bit {int(full)} is there by chance, and the proof rests on the others, which cost the "
        f"most; mark {'sparser' if full else 'denser'} layers (--layers), or more --bits"
    )
