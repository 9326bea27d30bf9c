"""The one exception for what a user can put right."""


class InputError(ValueError):
    """A mistake in what the user gave: an argument, a file, a config.

    The message is one sentence that names the argument, the value and what would be right. The `bnfree` command prints
    it without a traceback and leaves with exit code 2; in Python it is an ordinary `ValueError`.
    """


class NonFiniteError(InputError):
    """Numbers that have become NaN or infinite while training; the message says where and what may help.

    The `bnfree` command leaves with exit code 3.
    """
