"""What the subcommands of `bnfree` do; `bnfree.lightning_modules.cli` is the front."""
