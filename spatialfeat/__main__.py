"""`python -m spatialfeat`."""

from spatialfeat.cli import main

if __name__ == "__main__":
    main()
