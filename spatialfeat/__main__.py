"""`python -m spatialfeat`."""

from spatialfeat.cli import main

main()
