import pickle

import pytest

from bnfree.errors import InputError, NonFiniteError


@pytest.mark.parametrize("kind", [InputError, NonFiniteError])
def test_a_quoted_error_of_several_lines_becomes_one(kind):
    error = kind("a.pickle is damaged (line one\n    line two\n\n): unpack it again.")
    assert str(error) == "a.pickle is damaged (line one line two ): unpack it again."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(kind("path='a  b' stays.")) == "path='a  b' stays."
