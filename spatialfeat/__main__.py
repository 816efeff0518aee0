"""`spatialfeat`, and `python -m spatialfeat`: a word to those who are on Windows, before anything that is not there."""

import sys


def main() -> None:
    """Entry point of the `spatialfeat` command."""
    if sys.platform == "win32":
        sys.stderr.write(
            "error: spatialfeat runs on Linux and macOS; on Windows use it in WSL, the Windows Subsystem for Linux: "
            "run `wsl --install` in PowerShell, then install Python and spatialfeat in the Linux that this gives\n"
        )
        sys.exit(2)
    from spatialfeat.cli import main as run_command_line

    run_command_line()


if __name__ == "__main__":
    main()
