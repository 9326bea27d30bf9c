"""What commands print, read again."""

import re


def shown_accuracy(output):
    """Of the Trainer's table of test results, which is drawn in another way where `rich` is installed."""
    return float(re.search(r"test/acc\D+([\d.]+)", output)[1])
