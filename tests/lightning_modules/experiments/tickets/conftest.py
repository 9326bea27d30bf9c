"""A ticket file, and runs of `bnfree ticket`."""

import dataclasses

import pytest
import torch
from ticket_files import make_ticket

from bnfree.tickets import Ticket, load_ticket, save_ticket


@pytest.fixture
def ticket(project):
    """A ticket, in `ticket.pt` of the working directory."""
    made = make_ticket()
    save_ticket(made, project / "ticket.pt")
    return made


@pytest.fixture
def act(bnfree):
    """Runs an action, which must succeed; returns what it prints."""

    def run(*arguments):
        code, out, err = bnfree("ticket", *arguments)
        assert code == 0, err
        assert all(len(line) <= 100 for line in out.splitlines()), max(out.splitlines(), key=len)
        return out

    return run


@pytest.fixture
def same():
    """Compares the tensors and the config of two tickets, files or in memory."""

    def compare(first, second):
        first, second = (t if isinstance(t, Ticket) else load_ticket(t) for t in (first, second))
        for ours, theirs in ((first.state_dict, second.state_dict), (first.rewind, second.rewind)):
            assert list(ours) == list(theirs)
            for name, tensor in ours.items():
                assert torch.equal(tensor, theirs[name]), name
        fields = [dataclasses.replace(t, state_dict={}, rewind=None, details={}, config={}) for t in (first, second)]
        assert fields[0] == fields[1]

    return compare
