"""The program ``tfiseg``, and ``python -m tfiseg``."""

import sys


def program() -> int:
    """Run the program; Ctrl-C while its modules are imported ends it without a traceback."""
    try:
        from .cli.main import main
    except KeyboardInterrupt:
        print("tfiseg: interrupted", file=sys.stderr)
        return 130  # as shells use it after Ctrl-C
    return main()


if __name__ == "__main__":
    sys.exit(program())
