"""`bnfree ticket sign`: puts an owner's mark into the masks of a ticket."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from fnmatch import fnmatchcase

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.tickets.arguments import Parser, check_output
from bnfree.lightning_modules.experiments.tickets.base_rates import base_rate, warning
from bnfree.lightning_modules.experiments.tickets.key_files import read_owner_key
from bnfree.lightning_modules.experiments.tickets.pruned_network import read_ticket_file
from bnfree.text_tables import fields
from bnfree.tickets import Masks, Signature, Verification, mask_statistics, occupancy, save_ticket, verify
from bnfree.tickets.signing import sign_ticket, signature_of

DESCRIPTION = """\
Puts an owner's mark into the masks of a ticket, spread over several layers. The key decides which kernels (kH x kW
weights between one input channel and one filter) carry a bit, and what each bit is: a kernel with a survivor is 1, an
empty one 0. Every layer keeps its number of survivors. Without the key the mark can be neither found nor read.

Sign before the last training, which makes up for the change. The mark outlives training, which does not touch masks,
and most further pruning. What `sign` prints under "publish" (nothing secret) is the proof of when: the commitment, a
hash of masks, key, message and time, which only who knows all four can open later.

A bit is worth most where about half of the kernels have a survivor: with 3x3 kernels around density 0.07, with 1x1
around 0.5. `sign` says where the base rate is far from that; give --layers that are nearer, or more --bits."""
EXAMPLES = """\
  bnfree ticket key new --output owner.key
  bnfree ticket sign ticket.pt --key owner.key --message "A. Owner, digits, 2026" --output signed.pt
  bnfree ticket sign ticket.pt --key owner.key --layers "body.2.*" "body.3.*" --bits 128 --output signed.pt"""


def run(arguments: Sequence[str]) -> int:
    """Writes a signed ticket.

    Args:
        arguments: `sign` and its options.

    Raises:
        InputError: a mistake in what the user gave; nothing has been written then.
    """
    parser = Parser("sign", DESCRIPTION, EXAMPLES)
    parser.add_argument("ticket", metavar="TICKET", help="ticket file")
    parser.add_argument("--key", metavar="KEY", required=True, help="the owner's key, see bnfree ticket key new")
    parser.add_argument("--message", metavar="TEXT", default="", help="what is signed: owner, checksum of a model card")
    parser.add_argument("--bits", type=int, default=256, help="number of kernels to mark (default: 256)")
    parser.add_argument("--layers", metavar="NAME", nargs="+", help="layers to mark, with * and ? (default: all)")
    parser.add_argument("--created", metavar="TIME", help="when, in any notation (default: today's date, UTC)")
    parser.add_output("the signed ticket")
    options = parser.parse_args(arguments[1:])
    output = check_output(options.output, options.overwrite, options.ticket, options.key)
    key = read_owner_key(options.key)
    ticket = read_ticket_file(options.ticket).ticket
    created = datetime.now(timezone.utc).date().isoformat() if options.created is None else options.created
    layers = _layers(options.layers, ticket.masks)
    signed = sign_ticket(ticket, key, options.message, bits=options.bits, layers=layers, created=created)
    signature = signature_of(signed)
    assert signature is not None, "sign_ticket has put it there"
    found = verify(signed.masks, key, signature)
    save_ticket(signed, output)
    print(fields(_cost(ticket.masks, signed.masks, signature, found)))
    print("\nPublish, now (nothing of it is secret):")
    print(fields([("  commitment", signature.commitment), ("  key id", signature.key_id),
                  ("  message", repr(signature.message)), ("  created", signature.created)]))  # fmt: skip
    print(f"\nWritten: {output}")
    if "ownership" in ticket.details:
        print("Note: the ticket was signed before, and this mark may have damaged the earlier one.")
    if doubt := warning(signed.masks, signature, found):
        print("\n" + fields([("Warning", doubt)]))
    return 0


def _layers(patterns: Sequence[str] | None, masks: Masks) -> list[str] | None:
    if patterns is None:
        return None
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in masks):
            raise InputError(f"layers={pattern!r} fits no pruned layer; choose among {', '.join(masks)}.")
    return [name for name in masks if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _cost(before: Masks, after: Masks, signature: Signature, found: Verification) -> list[tuple[str, str]]:
    """What the mark has changed, and how strong it is."""
    total = mask_statistics(after).total
    gone = sum(int((mask & ~after[name]).sum()) for name, mask in before.items())
    opened, emptied = (
        sum(int((occupancy(new[name]) & ~occupancy(old[name])).sum()) for name in before)
        for old, new in ((before, after), (after, before))
    )
    return [
        ("mark", f"{found.bits} bits in {len(signature.layers)} layers, all as the key says"),
        ("density", f"{total.density:.4f}, {total.kept} survivors, the same in every layer"),
        ("moved", f"{gone} survivors ({gone / max(total.kept, 1):.2%}) have changed places; {opened} kernels got their "
                  f"first survivor, {emptied} lost their last"),
        ("base rate", base_rate(found)),
        ("p-value", f"{found.p_value:.1e} that a key without connection to these masks finds all bits"),
    ]  # fmt: skip
