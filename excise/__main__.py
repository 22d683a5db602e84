"""`python -m excise` is `excise`."""

from excise.cli import main

main()
