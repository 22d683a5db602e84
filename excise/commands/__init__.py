"""One file is one command of `excise`; the folder walk in `excise.cli` is the list."""
