"""Owners of tickets: keys, marks in the masks, proofs, and tickets in two parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.tickets.pruned_network import (
    PrunedNetwork,
    TicketFile,
    check_output,
    read_pruned_network,
    read_ticket_file,
)
from bnfree.tickets import (
    LayerDensity,
    Masks,
    Signature,
    Ticket,
    Verification,
    commitment,
    lock,
    mask_statistics,
    new_key,
    occupancy,
    save_ticket,
    unlock,
    verify,
)
from bnfree.tickets.key_files import (
    read_owner_key,
    read_ticket_key,
    write_owner_key,
    write_ticket_key,
)
from bnfree.tickets.keyed import key_digest
from bnfree.tickets.signing import sign_ticket, signature_of

# Beyond these occupancies one of the two values of a bit is there by chance in more than four of five kernels.
NEAR_HALF = (0.2, 0.8)


@dataclass(frozen=True)
class OwnerKey:
    """The file of an owner's key, whose secret stays in it."""

    path: Path
    """The file, mode 0600."""
    id: str
    """What signatures name it by; nothing secret."""


def new_owner_key(output: str | Path) -> OwnerKey:
    """Writes an owner's key, a random secret of 256 bits, into a new file of mode 0600.

    Raises:
        InputError: the file exists, since a key is never replaced, or cannot be written.
    """
    if Path(output).expanduser().exists():
        raise InputError(f"output={str(output)!r} exists, and a key is never replaced; give another file.")
    path = check_output(output, overwrite=False)
    key = new_key()
    write_owner_key(key, path)
    return OwnerKey(path, _key_id(key))


@dataclass(frozen=True, kw_only=True)
class SignSettings:
    """A ticket, and the mark that goes into its masks."""

    ticket: str | Path
    """The ticket file."""
    key: str | Path
    """File of the owner's key."""
    output: str | Path
    """Where the signed ticket goes."""
    overwrite: bool = False
    """Replace a file that is there."""
    message: str = ""
    """What is signed: owner, checksum of a model card."""
    bits: int = 256
    """Number of kernels to mark."""
    layers: Sequence[str] | None = None
    """Names of layers to mark, with `*` and `?`; None: all."""
    created: str | None = None
    """When, in any notation; None: today's date, UTC."""


@dataclass(frozen=True)
class BaseRates:
    """Marked layers in which too much of the mark would be there by chance."""

    far: dict[str, float]
    """Share of the kernels with a survivor, by layer, far from one half."""
    marked: int
    """How many layers are marked at all."""
    bits: int
    """Bits in the layers that are far."""


@dataclass(frozen=True)
class SignedTicket:
    """A ticket with an owner's mark."""

    path: Path
    """Its file."""
    ticket: Ticket
    signature: Signature
    """What is published; nothing of it is secret."""
    found: Verification
    """How strong the mark is."""
    total: LayerDensity
    """What the masks keep, over all layers."""
    moved: int
    """Survivors that have changed places."""
    opened: int
    """Kernels that got their first survivor."""
    emptied: int
    """Kernels that lost their last one."""
    base_rates: BaseRates
    signed_before: bool
    """Whether the ticket had a mark already, which this one may have damaged."""


def sign_ticket_file(settings: SignSettings) -> SignedTicket:
    """Writes a ticket whose masks carry an owner's mark.

    Raises:
        InputError: no ticket, no key, layers or bits that there are not, or a file that cannot be written; nothing has
            been written then.
    """
    output = check_output(settings.output, settings.overwrite, settings.ticket, settings.key)
    key = read_owner_key(settings.key)
    ticket = read_ticket_file(settings.ticket).ticket
    created = datetime.now(timezone.utc).date().isoformat() if settings.created is None else settings.created
    layers = _layers(settings.layers, ticket.masks)
    signed = sign_ticket(ticket, key, settings.message, bits=settings.bits, layers=layers, created=created)
    signature = _signature(signed, f"ticket={str(settings.ticket)!r}")
    found = verify(signed.masks, key, signature)
    save_ticket(signed, output)
    before, after = ticket.masks, signed.masks
    opened, emptied = (
        sum(int((occupancy(new[name]) & ~occupancy(old[name])).sum()) for name in before)
        for old, new in ((before, after), (after, before))
    )
    return SignedTicket(
        path=output,
        ticket=signed,
        signature=signature,
        found=found,
        total=mask_statistics(after).total,
        moved=sum(int((mask & ~after[name]).sum()) for name, mask in before.items()),
        opened=opened,
        emptied=emptied,
        base_rates=_base_rates(after, signature),
        signed_before="ownership" in ticket.details,
    )


@dataclass(frozen=True)
class VerifiedTicket:
    """What was found of an owner's mark."""

    suspect: PrunedNetwork
    """The ticket or checkpoint that was looked at."""
    signature: Signature
    """What the owner claims."""
    signed_path: str
    """File of the owner's signed ticket, as it was given."""
    found: Verification
    accepted: bool
    """Whether the p-value lies below the largest one that was asked for."""
    opened: bool
    """Whether the commitment is that of the owner's masks, key, message and time."""
    right_key: bool
    """Whether the key is the one that the signature names."""
    base_rates: BaseRates


def verify_ticket_file(
    ticket: str | Path, key: str | Path, signed: str | Path | None = None, accept: float = 1e-6
) -> VerifiedTicket:
    """Looks for an owner's mark in a ticket or checkpoint, which may have been trained and pruned further.

    Args:
        ticket: ticket file, or checkpoint of a pruned network.
        key: file of the owner's key.
        signed: the owner's signed ticket; None: `ticket` itself.
        accept: largest p-value, between 0 and 1.

    Raises:
        InputError: a file that cannot be read, a ticket without a signature, or `accept` out of its range.
    """
    if not 0 < accept < 1:
        raise InputError(f"accept={accept} must be between 0 and 1: the p-value below which a claim holds.")
    secret = read_owner_key(key)
    suspect = read_pruned_network(ticket)
    owner = suspect if signed is None else read_ticket_file(signed)
    given = f"ticket={str(ticket)!r}" if signed is None else f"signed={str(signed)!r}"
    signature = _signature(owner.ticket if isinstance(owner, TicketFile) else None, given)
    found = verify(suspect.masks, secret, signature, None if signed is None else owner.masks)
    return VerifiedTicket(
        suspect=suspect,
        signature=signature,
        signed_path=owner.path,
        found=found,
        accepted=found.p_value < accept,
        opened=commitment(owner.masks, secret, signature.message, signature.created) == signature.commitment,
        right_key=_key_id(secret) == signature.key_id,
        base_rates=_base_rates(suspect.masks, signature),
    )


@dataclass(frozen=True)
class SplitTicket:
    """A ticket in two parts."""

    path: Path
    """File of the locked ticket."""
    key_path: Path
    """File of its key, mode 0600."""
    key_id: str
    """What the locked ticket names its key by."""
    whole: LayerDensity
    """What the masks kept, over all layers."""
    locked: LayerDensity
    """What the locked ticket's keep."""
    taken: LayerDensity
    """What is in the key."""


def split_ticket_file(
    ticket: str | Path,
    key: str | Path,
    output: str | Path,
    share: float = 0.05,
    seed: int = 0,
    overwrite: bool = False,
) -> SplitTicket:
    """Takes the best survivors out of a ticket: a locked ticket to give away, and a key to keep.

    Args:
        ticket: the ticket file.
        key: where the key goes.
        output: where the locked ticket goes.
        share: of the survivors, in the key.
        seed: of the values in their place.
        overwrite: replace files that are there.

    Raises:
        InputError: a file that cannot be read or written, or a share that leaves nothing; nothing has been written
            then.
    """
    path, key_path = check_output(output, overwrite, ticket), check_output(key, overwrite, ticket)
    if path.absolute() == key_path.absolute():
        raise InputError(f"key={str(key)!r} and output={str(output)!r} are the same file; give two.")
    whole = read_ticket_file(ticket).ticket
    locked, ticket_key = lock(whole, share, seed)
    # The key first: without it, the ticket could not be had back from a locked one that took its place.
    write_ticket_key(ticket_key, key_path)
    save_ticket(locked, path)
    totals = [mask_statistics(masks).total for masks in (whole.masks, locked.masks, ticket_key.masks)]
    return SplitTicket(path, key_path, ticket_key.id, *totals)


@dataclass(frozen=True)
class JoinedTicket:
    """A ticket that was in two parts."""

    path: Path
    """Its file."""
    ticket: Ticket
    total: LayerDensity
    """What its masks keep, over all layers."""


def join_ticket_file(ticket: str | Path, key: str | Path, output: str | Path, overwrite: bool = False) -> JoinedTicket:
    """Makes the ticket that `split_ticket_file` has taken apart, bit for bit.

    Args:
        ticket: the locked ticket.
        key: file of its key.
        output: where the whole ticket goes.
        overwrite: replace a file that is there.

    Raises:
        InputError: a file that cannot be read or written, or the key of another ticket; nothing has been written then.
    """
    path = check_output(output, overwrite, ticket, key)
    whole = unlock(read_ticket_file(ticket).ticket, read_ticket_key(key))
    save_ticket(whole, path)
    return JoinedTicket(path, whole, mask_statistics(whole.masks).total)


def _signature(ticket: Ticket | None, given: str) -> Signature:
    signature = None if ticket is None else signature_of(ticket)
    if signature is None:
        raise InputError(f"{given} holds no signature; give the owner's signed ticket as --signed.")
    return signature


def _key_id(key: str) -> str:
    return key_digest(key, "bnfree key id")[:16]


def _layers(patterns: Sequence[str] | None, masks: Masks) -> list[str] | None:
    if patterns is None:
        return None
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in masks):
            raise InputError(f"layers={pattern!r} fits no pruned layer; choose among {', '.join(masks)}.")
    return [name for name in masks if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _base_rates(masks: Masks, signature: Signature) -> BaseRates:
    shares = {name: occupancy(masks[name]).double().mean().item() for name in signature.layers if name in masks}
    far = {name: share for name, share in shares.items() if not NEAR_HALF[0] <= share <= NEAR_HALF[1]}
    return BaseRates(far, len(shares), sum(signature.layers[name][2] for name in far))
