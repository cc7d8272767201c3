"""`python -m citystream`: the command without its being installed, as the container image runs it."""

from citystream.cli import main

main()
