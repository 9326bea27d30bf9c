"""What the subcommands of `bnfree` do; `lightning_modules.cli` is the front."""
