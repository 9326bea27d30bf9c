"""What commands print, read again."""

import re


def shown_accuracy(output):
    """The share of right answers that a command prints, in percent with two decimals."""
    return float(re.search(r"test/acc\D+([\d.]+) %", output)[1]) / 100
