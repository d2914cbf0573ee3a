"""`python -m edgedl.cli`."""

from edgedl.cli import main

main()
