"""`python -m loomos` is the `loomos` command."""

from loomos.cli import main

main()
