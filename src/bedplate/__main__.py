"""`python -m bedplate` is the command `bedplate`."""

from bedplate.cli.main import main

main()
