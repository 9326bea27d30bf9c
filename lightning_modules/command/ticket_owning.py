"""`bnfree ticket key`, `sign` and `verify`: their manuals, their options, and what they print."""

from __future__ import annotations

from collections.abc import Sequence

from bnfree.errors import InputError
from bnfree.lightning_modules.command.parsing import ActionParser, add_output
from bnfree.lightning_modules.experiments.tickets.owning import (
    NEAR_HALF,
    BaseRates,
    SignedTicket,
    SignSettings,
    VerifiedTicket,
    join_ticket_file,
    new_owner_key,
    sign_ticket_file,
    split_ticket_file,
    verify_ticket_file,
)
from bnfree.lightning_modules.experiments.tickets.trigger_claim import TriggerSettings, claim_by_triggers
from bnfree.names import did_you_mean
from bnfree.text_tables import fields
from bnfree.tickets import Verification, checksum

SIGN_MANUAL = """\
Puts an owner's mark into the masks of a ticket, spread over several layers. The key decides which kernels (kH x kW
weights between one input channel and one filter) carry a bit, and what each bit is: a kernel with a survivor is 1, an
empty one 0. Every layer keeps its number of survivors. Without the key the mark can be neither found nor read.

Sign before the last training, which makes up for the change. The mark outlives training, which does not touch masks,
and most further pruning. What `sign` prints under "publish" (nothing secret) is the proof of when: the commitment, a
hash of masks, key, message and time, which only who knows all four can open later.

A bit is worth most where about half of the kernels have a survivor: with 3x3 kernels around density 0.07, with 1x1
around 0.5. `sign` says where the base rate is far from that; give --layers that are nearer, or more --bits."""
SIGN_EXAMPLES = """\
  bnfree ticket key new --output owner.key
  bnfree ticket sign ticket.pt --key owner.key --message "A. Owner, digits, 2026" --output signed.pt
  bnfree ticket sign ticket.pt --key owner.key --layers "body.2.*" "body.3.*" --bits 128 --output signed.pt"""
VERIFY_MANUAL = """\
Looks for the mark of a key in the masks of a ticket or of a checkpoint, which may have been trained, pruned further and
regrown since. Says how probable it is that a key without any connection to these masks finds as many bits: a binomial
tail at the base rates of the masks themselves, so that masks which are nearly all full or empty prove nothing by that.

The exit code is 0 if this p-value is below --accept, 1 if it is not, 2 after a mistake.

Where the mark lies follows from the key and from the signature, which is no secret: it is in every signed ticket. For a
checkpoint, or a ticket whose notes were removed, name the owner's signed ticket as --signed.

A p-value is for one key and one message that were fixed beforehand, which the published commitment shows; whoever may
choose among many can find a small one in any masks."""
VERIFY_EXAMPLES = """\
  bnfree ticket verify signed.pt --key owner.key
  bnfree ticket verify suspect/checkpoints/last.ckpt --key owner.key --signed signed.pt"""
TRIGGERS_MANUAL = """\
Claims a network by what it answers: the trigger images of a key, with classes that the key has drawn. A network that
was trained with the callback OwnershipTriggers gives them these classes; one without a connection to the key agrees on
each with probability 1 / classes, and the p-value is the binomial tail of that.

The exit code is 0 if this p-value is below --accept, 1 if it is not, 2 after a mistake.

A p-value is for one key and one message that were fixed before the network was there: publish their commitment, or sign
the ticket with the same key."""
TRIGGERS_EXAMPLES = """\
  bnfree ticket key new --output owner.key
  bnfree fit --config quickstart --config ownership_triggers
  bnfree ticket triggers runs/quickstart/checkpoints/last.ckpt --key owner.key"""
KEY_HELP = """\
usage: bnfree ticket key new --output KEY
       bnfree ticket key split TICKET --share 0.05 --key KEY --output LOCKED
       bnfree ticket key join LOCKED --key KEY --output TICKET

new    writes an owner's key: a random secret of 256 bits, with which bnfree ticket sign marks tickets.
split  takes the best survivors out of a ticket: a locked ticket to give away, and a key to keep or to sell.
join   makes the ticket of the two again, bit for bit.

Files with keys are written with mode 0600, and what is in them is never printed.

Options: bnfree ticket key new|split|join --help
"""
NEW_MANUAL = """\
Writes an owner's key: a random secret of 256 bits. Whoever has it can claim what it signs, and without it nobody can
prove a mark: keep a copy in a safe place. An existing file is never replaced."""
SPLIT_MANUAL = """\
Takes the best survivors (by standardised magnitude) out of a ticket. The locked ticket can be given away; it trains,
but to less. Its key holds the places and values of what is missing. In the locked file there are drawn values in their
place, like those of pruned weights. The survivors' places protect; what a network of this architecture can learn from
scratch remains possible.

Source: the first scheme of Chen et al. (NeurIPS 2021, arXiv 2111.00162), where keys of 5 to 15 % of the survivors cost
more than a point when they were missing. Measure it on your task."""
JOIN_MANUAL = """\
Makes the ticket that split has taken apart, bit for bit. The key of another ticket is refused."""
CHANCE = "that a key without connection to these masks finds"


def run_sign(arguments: Sequence[str]) -> int:
    """Writes a signed ticket; prints what the mark has cost, and what is to be published.

    Args:
        arguments: `sign` and its options.
    """
    parser = ActionParser("bnfree ticket sign", SIGN_MANUAL, SIGN_EXAMPLES)
    parser.add_argument("ticket", metavar="TICKET", help="ticket file")
    parser.add_argument("--key", metavar="KEY", required=True, help="the owner's key, see bnfree ticket key new")
    parser.add_argument("--message", metavar="TEXT", default="", help="what is signed: owner, checksum of a model card")
    parser.add_argument("--bits", type=int, default=256, help="number of kernels to mark (default: 256)")
    parser.add_argument("--layers", metavar="NAME", nargs="+", help="layers to mark, with * and ? (default: all)")
    parser.add_argument("--created", metavar="TIME", help="when, in any notation (default: today's date, UTC)")
    add_output(parser, "the signed ticket")
    signed = sign_ticket_file(SignSettings(**vars(parser.parse_args(arguments[1:]))))
    print(fields(_mark(signed)))
    signature = signed.signature
    print("\nPublish, now (nothing of it is secret):")
    print(fields([("  commitment", signature.commitment), ("  key id", signature.key_id),
                  ("  message", repr(signature.message)), ("  created", signature.created)]))  # fmt: skip
    print(f"\nWritten: {signed.path}")
    if signed.signed_before:
        print("Note: the ticket was signed before, and this mark may have damaged the earlier one.")
    _warn(signed.base_rates, signed.found)
    return 0


def _mark(signed: SignedTicket) -> list[tuple[str, str]]:
    total, found = signed.total, signed.found
    return [
        ("mark", f"{found.bits} bits in {len(signed.signature.layers)} layers, all as the key says"),
        ("density", f"{total.density:.4f}, {total.kept} survivors, the same in every layer"),
        ("moved", f"{signed.moved} survivors ({signed.moved / max(total.kept, 1):.2%}) have changed places; "
                  f"{signed.opened} kernels got their first survivor, {signed.emptied} lost their last"),
        ("base rate", _base_rate(found)),
        ("p-value", f"{found.p_value:.1e} {CHANCE} all bits"),
    ]  # fmt: skip


def run_verify(arguments: Sequence[str]) -> int:
    """Prints what has been found of a mark.

    Args:
        arguments: `verify` and its options.

    Returns:
        0 if the claim is accepted, 1 if not.
    """
    parser = ActionParser("bnfree ticket verify", VERIFY_MANUAL, VERIFY_EXAMPLES)
    parser.add_argument("ticket", metavar="TICKET", help="ticket file, or checkpoint of a pruned network")
    parser.add_argument("--key", metavar="KEY", required=True, help="the owner's key")
    parser.add_argument("--signed", metavar="TICKET", help="the owner's signed ticket (default: TICKET itself)")
    parser.add_argument("--accept", type=float, default=1e-6, metavar="P", help="largest p-value (default: 1e-6)")
    options = parser.parse_args(arguments[1:])
    verified = verify_ticket_file(options.ticket, options.key, options.signed, options.accept)
    print(fields(_claim(verified)))
    _warn(verified.base_rates, verified.found)
    word, sign = ("Accepted", "<") if verified.accepted else ("Not accepted", ">=")
    print(f"\n{word}: p {sign} {options.accept:g}")
    return 0 if verified.accepted else 1


def _claim(verified: VerifiedTicket) -> list[tuple[str, str]]:
    signature, found = verified.signature, verified.found
    opening = "not opened by this key and its masks, which another key has signed or which have changed since"
    if verified.opened:
        opening = "opened by its masks, key, message and time; compare it with what was published"
    rows = [
        ("ticket", f"{verified.suspect.path}, masks sha256 {checksum(verified.suspect.masks)[:16]}"),
        ("claim", f"message {signature.message!r}, created {signature.created or 'on an unknown day'}, key id "
                  f"{signature.key_id}"),
        ("bits", f"{found.agreeing} of {found.bits} agree ({found.agreement:.1%})"),
        ("base rate", _base_rate(found)),
        ("p-value", f"{found.p_value:.1e} {CHANCE} as many"),
        ("commitment", f"{signature.commitment} of {verified.signed_path}: {opening}"),
    ]  # fmt: skip
    if found.missing:
        rows.append(("missing", f"{', '.join(found.missing)}: not there in the signed shape, left out of the account"))
    if not verified.right_key:
        rows.append(("key", "not the one that the signature names"))
    return rows


def _base_rate(found: Verification) -> str:
    return (
        f"{found.occupied:.3f} of the kernels in these layers have a survivor, so that by chance {found.expected:.1f} "
        f"of {found.bits} bits agree"
    )


def _warn(rates: BaseRates, found: Verification) -> None:
    """Prints which layers' base rate is far from one half, with the numbers."""
    if not rates.far:
        return
    low, high = min(rates.far.values()), max(rates.far.values())
    shares = f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"
    full = high > NEAR_HALF[1]
    doubt = (
        f"the base rate is far from one half in {len(rates.far)} of {rates.marked} marked layers ({shares}; "
        f"{rates.bits} of {found.bits} bits): a bit {int(full)} is there by chance, and the proof rests on the others, "
        f"which cost the most; mark {'sparser' if full else 'denser'} layers (--layers), or more --bits"
    )
    print("\n" + fields([("Warning", doubt)]))


def run_triggers(arguments: Sequence[str]) -> int:
    """Prints what a network answers to the triggers of a key.

    Args:
        arguments: `triggers` and its options.

    Returns:
        0 if the claim is accepted, 1 if not.
    """
    parser = ActionParser("bnfree ticket triggers", TRIGGERS_MANUAL, TRIGGERS_EXAMPLES)
    parser.add_argument("source", metavar="SOURCE", help="checkpoint or run directory")
    parser.add_argument("--key", metavar="KEY", required=True, help="the owner's key")
    parser.add_argument("--message", metavar="TEXT", default="", help="what is claimed, as it was trained")
    parser.add_argument("--count", type=int, default=100, help="number of trigger images, as trained (default: 100)")
    parser.add_argument("--accept", type=float, default=1e-6, metavar="P", help="largest p-value (default: 1e-6)")
    settings = TriggerSettings(**vars(parser.parse_args(arguments[1:])))
    found = claim_by_triggers(settings)
    print(fields([
        ("network", str(settings.source)),
        ("claim", f"message {settings.message!r}"),
        ("triggers", f"{found.agreeing} of {found.count} have the key's class ({found.accuracy:.1%}); by chance "
                     f"{found.count / found.num_classes:.1f}"),
        ("p-value", f"{found.p_value:.1e} that a network without connection to this key agrees on as many"),
    ]))  # fmt: skip
    accepted = found.p_value < settings.accept
    word, sign = ("Accepted", "<") if accepted else ("Not accepted", ">=")
    print(f"\n{word}: p {sign} {settings.accept:g}")
    return 0 if accepted else 1


def run_key(arguments: Sequence[str]) -> int:
    """Makes a key, or splits and joins a ticket.

    Args:
        arguments: `key`, what to do, and its options.

    Raises:
        InputError: no such action, or a mistake in its options.
    """
    if len(arguments) < 2 or arguments[1] in ("-h", "--help", "help"):
        print(KEY_HELP, end="")
        return 0
    actions = {"new": _new, "split": _split, "join": _join}
    if arguments[1] not in actions:
        remedy = did_you_mean(arguments[1], actions) or f"choose from {', '.join(actions)}."
        raise InputError(f"action {arguments[1]!r} of ticket key is not known; {remedy}")
    actions[arguments[1]](arguments[2:])
    return 0


def _new(words: Sequence[str]) -> None:
    parser = ActionParser("bnfree ticket key new", NEW_MANUAL, "  bnfree ticket key new --output owner.key")
    parser.add_argument("--output", metavar="KEY", required=True, help="where the key goes")
    key = new_owner_key(parser.parse_args(words).output)
    print(fields([("key", str(key.path)), ("key id", f"{key.id}, which signatures name"),
                  ("mode", "0600: readable by you alone; keep a copy in a safe place")]))  # fmt: skip


def _split(words: Sequence[str]) -> None:
    example = "  bnfree ticket key split ticket.pt --share 0.1 --key ticket.key --output locked.pt"
    parser = ActionParser("bnfree ticket key split", SPLIT_MANUAL, example)
    parser.add_argument("ticket", metavar="TICKET", help="ticket file")
    parser.add_argument("--share", type=float, default=0.05, help="of the survivors, in the key (default: 0.05)")
    parser.add_argument("--seed", type=int, default=0, help="of the values in their place (default: 0)")
    parser.add_argument("--key", metavar="KEY", required=True, help="file of the key")
    add_output(parser, "the locked ticket")
    options = parser.parse_args(words)
    split = split_ticket_file(**vars(options))
    whole, locked, taken = split.whole, split.locked, split.taken
    print(fields([
        ("ticket", f"{options.ticket}: {whole.kept} survivors, density {whole.density:.4f}"),
        ("locked", f"{split.path}: {locked.kept} survivors, density {locked.density:.4f}, {locked.empty_filters} empty "
                   "filters"),
        ("key", f"{split.key_path}: {taken.kept} survivors ({taken.kept / whole.kept:.2%}), id {split.key_id}, mode "
                "0600"),
    ]))  # fmt: skip


def _join(words: Sequence[str]) -> None:
    example = "  bnfree ticket key join locked.pt --key ticket.key --output ticket.pt"
    parser = ActionParser("bnfree ticket key join", JOIN_MANUAL, example)
    parser.add_argument("ticket", metavar="LOCKED", help="ticket file")
    parser.add_argument("--key", metavar="KEY", required=True, help="file of the key")
    add_output(parser, "the whole ticket")
    joined = join_ticket_file(**vars(parser.parse_args(words)))
    print(fields([("written", f"{joined.path}: {joined.total.kept} survivors, density {joined.total.density:.4f}"),
                  ("masks", f"sha256 {joined.ticket.checksum}, as before the split")]))  # fmt: skip
