"""`bnfree ticket key`: an owner's key, and tickets in two parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.tickets.arguments import Parser, check_output
from bnfree.lightning_modules.experiments.tickets.key_files import (
    read_ticket_key,
    write_owner_key,
    write_ticket_key,
)
from bnfree.lightning_modules.experiments.tickets.pruned_network import read_ticket_file
from bnfree.names import did_you_mean
from bnfree.text_tables import fields
from bnfree.tickets import lock, mask_statistics, new_key, save_ticket, unlock
from bnfree.tickets.keyed import key_digest

ACTIONS = ("new", "split", "join")
HELP = """\
usage: bnfree ticket key new --output KEY
       bnfree ticket key split TICKET --share 0.05 --key KEY --output LOCKED
       bnfree ticket key join LOCKED --key KEY --output TICKET

new    writes an owner's key: a random secret of 256 bits, with which bnfree ticket sign marks tickets.
split  takes the best survivors out of a ticket: a locked ticket to give away, and a key to keep or to sell.
join   makes the ticket of the two again, bit for bit.

Files with keys are written with mode 0600, and what is in them is never printed.

Options: bnfree ticket key new|split|join --help
"""
DESCRIPTIONS = {
    "new": """\
Writes an owner's key: a random secret of 256 bits. Whoever has it can claim what it signs, and without it nobody can
prove a mark: keep a copy in a safe place. An existing file is never replaced.""",
    "split": """\
Takes the best survivors (by standardised magnitude) out of a ticket. The locked ticket can be given away; it trains,
but to less. Its key holds the places and values of what is missing. In the locked file there are drawn values in their
place, like those of pruned weights. The survivors' places protect; what a network of this architecture can learn from
scratch remains possible.

Source: the first scheme of Chen et al. (NeurIPS 2021, arXiv 2111.00162), where keys of 5 to 15 % of the survivors cost
more than a point when they were missing. Measure it on your task.""",
    "join": """\
Makes the ticket that split has taken apart, bit for bit. The key of another ticket is refused.""",
}
EXAMPLES = {
    "new": "  bnfree ticket key new --output owner.key",
    "split": "  bnfree ticket key split ticket.pt --share 0.1 --key ticket.key --output locked.pt",
    "join": "  bnfree ticket key join locked.pt --key ticket.key --output ticket.pt",
}


def run(arguments: Sequence[str]) -> int:
    """Makes a key, or splits and joins a ticket.

    Args:
        arguments: `key`, what to do, and its options.

    Raises:
        InputError: a mistake in what the user gave; nothing has been written then.
    """
    if len(arguments) < 2 or arguments[1] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    what = arguments[1]
    if what not in ACTIONS:
        remedy = did_you_mean(what, ACTIONS) or "choose from new, split, join."
        raise InputError(f"action {what!r} of ticket key is not known; {remedy}")
    parser = Parser(f"key {what}", DESCRIPTIONS[what], EXAMPLES[what])
    if what == "new":
        parser.add_argument("--output", metavar="KEY", required=True, help="where the key goes")
        _new(parser.parse_args(arguments[2:]).output)
        return 0
    parser.add_argument("ticket", metavar="TICKET" if what == "split" else "LOCKED", help="ticket file")
    if what == "split":
        parser.add_argument("--share", type=float, default=0.05, help="of the survivors, in the key (default: 0.05)")
        parser.add_argument("--seed", type=int, default=0, help="of the values in their place (default: 0)")
    parser.add_argument("--key", metavar="KEY", required=True, help="file of the key")
    parser.add_output("the locked ticket" if what == "split" else "the whole ticket")
    options = parser.parse_args(arguments[2:])
    if what == "split":
        _split(options.ticket, options.share, options.seed, options.key, options.output, options.overwrite)
    else:
        _join(options.ticket, options.key, options.output, options.overwrite)
    return 0


def _new(given: str) -> None:
    if Path(given).expanduser().exists():
        raise InputError(f"output={given!r} exists, and a key is never replaced; give another file.")
    output = check_output(given, overwrite=False)
    key = new_key()
    write_owner_key(key, output)
    print(fields([("key", str(output)), ("key id", f"{key_digest(key, 'bnfree key id')[:16]}, which signatures name"),
                  ("mode", "0600: readable by you alone; keep a copy in a safe place")]))  # fmt: skip


def _split(given: str, share: float, seed: int, key_file: str, output_file: str, overwrite: bool) -> None:
    output = check_output(output_file, overwrite, given)
    key_output = check_output(key_file, overwrite, given)
    if output.absolute() == key_output.absolute():
        raise InputError(f"key={key_file!r} and output={output_file!r} are the same file; give two.")
    ticket = read_ticket_file(given).ticket
    locked, key = lock(ticket, share, seed)
    # The key first: without it, the ticket could not be had back from a locked one that took its place.
    write_ticket_key(key, key_output)
    save_ticket(locked, output)
    whole, taken, left = (mask_statistics(masks).total for masks in (ticket.masks, key.masks, locked.masks))
    print(fields([
        ("ticket", f"{given}: {whole.kept} survivors, density {whole.density:.4f}"),
        ("locked", f"{output}: {left.kept} survivors, density {left.density:.4f}, {left.empty_filters} empty filters"),
        ("key", f"{key_output}: {taken.kept} survivors ({taken.kept / whole.kept:.2%}), id {key.id}, mode 0600"),
    ]))  # fmt: skip


def _join(given: str, key_file: str, output_file: str, overwrite: bool) -> None:
    output = check_output(output_file, overwrite, given, key_file)
    ticket = unlock(read_ticket_file(given).ticket, read_ticket_key(key_file))
    save_ticket(ticket, output)
    whole = mask_statistics(ticket.masks).total
    print(fields([("written", f"{output}: {whole.kept} survivors, density {whole.density:.4f}"),
                  ("masks", f"sha256 {ticket.checksum}, as before the split")]))  # fmt: skip
