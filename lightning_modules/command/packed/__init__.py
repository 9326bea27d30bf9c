"""`bnfree predict`, `test` and `bench` on packed files, which need no config."""
