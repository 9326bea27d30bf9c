"""`bnfree ticket verify`: looks for an owner's mark."""

from __future__ import annotations

from collections.abc import Sequence

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.tickets.arguments import Parser
from bnfree.lightning_modules.experiments.tickets.base_rates import base_rate, warning
from bnfree.lightning_modules.experiments.tickets.key_files import read_owner_key
from bnfree.lightning_modules.experiments.tickets.pruned_network import (
    TicketFile,
    read_pruned_network,
    read_ticket_file,
)
from bnfree.text_tables import fields
from bnfree.tickets import Signature, checksum, commitment, verify
from bnfree.tickets.keyed import key_digest
from bnfree.tickets.signing import signature_of

DESCRIPTION = """\
Looks for the mark of a key in the masks of a ticket or of a checkpoint, which may have been trained, pruned further and
regrown since. Says how probable it is that a key without any connection to these masks finds as many bits: a binomial
tail at the base rates of the masks themselves, so that masks which are nearly all full or empty prove nothing by that.

The exit code is 0 if this p-value is below --accept, 1 if it is not, 2 after a mistake.

Where the mark lies follows from the key and from the signature, which is no secret: it is in every signed ticket. For a
checkpoint, or a ticket whose notes were removed, name the owner's signed ticket as --signed.

A p-value is for one key and one message that were fixed beforehand, which the published commitment shows; whoever may
choose among many can find a small one in any masks."""
EXAMPLES = """\
  bnfree ticket verify signed.pt --key owner.key
  bnfree ticket verify suspect/checkpoints/last.ckpt --key owner.key --signed signed.pt"""


def run(arguments: Sequence[str]) -> int:
    """Prints what has been found of a mark.

    Args:
        arguments: `verify` and its options.

    Returns:
        0 if the claim is accepted, 1 if not.

    Raises:
        InputError: a mistake in what the user gave.
    """
    parser = Parser("verify", DESCRIPTION, EXAMPLES)
    parser.add_argument("ticket", metavar="TICKET", help="ticket file, or checkpoint of a pruned network")
    parser.add_argument("--key", metavar="KEY", required=True, help="the owner's key")
    parser.add_argument("--signed", metavar="TICKET", help="the owner's signed ticket (default: TICKET itself)")
    parser.add_argument("--accept", type=float, default=1e-6, metavar="P", help="largest p-value (default: 1e-6)")
    options = parser.parse_args(arguments[1:])
    if not 0 < options.accept < 1:
        raise InputError(f"accept={options.accept} must be between 0 and 1: the p-value below which a claim holds.")
    key = read_owner_key(options.key)
    suspect = read_pruned_network(options.ticket)
    owner = suspect if options.signed is None else read_ticket_file(options.signed)
    if not isinstance(owner, TicketFile) or (signature := signature_of(owner.ticket)) is None:
        which = f"signed={options.signed!r}" if options.signed is not None else f"ticket={options.ticket!r}"
        raise InputError(f"{which} holds no signature; give the owner's signed ticket as --signed.")
    found = verify(suspect.masks, key, signature)
    accepted = found.p_value < options.accept
    rows = [
        ("ticket", f"{options.ticket}, masks sha256 {checksum(suspect.masks)[:16]}"),
        ("claim", f"message {signature.message!r}, created {signature.created or 'on an unknown day'}, key id "
                  f"{signature.key_id}"),
        ("bits", f"{found.agreeing} of {found.bits} agree ({found.agreement:.1%})"),
        ("base rate", base_rate(found)),
        ("p-value", f"{found.p_value:.1e} that a key without connection to these masks finds as many"),
        ("commitment", _opening(owner, key, signature)),
    ]  # fmt: skip
    if found.missing:
        rows.append(("missing", f"{', '.join(found.missing)}: not there in the signed shape, left out of the account"))
    if key_digest(key, "bnfree key id")[:16] != signature.key_id:
        rows.append(("key", "not the one that the signature names"))
    print(fields(rows))
    if doubt := warning(suspect.masks, signature, found):
        print("\n" + fields([("Warning", doubt)]))
    print(f"\n{'Accepted' if accepted else 'Not accepted'}: p {'<' if accepted else '>='} {options.accept:g}")
    return 0 if accepted else 1


def _opening(owner: TicketFile, key: str, signature: Signature) -> str:
    opened = commitment(owner.masks, key, signature.message, signature.created) == signature.commitment
    what = (
        "opened by its masks, key, message and time; compare it with what was published"
        if opened
        else "not opened by this key and its masks, which another key has signed or which have changed since"
    )
    return f"{signature.commitment} of {owner.path}: {what}"
