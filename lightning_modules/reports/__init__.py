"""Tables and figures of runs and lotteries."""
