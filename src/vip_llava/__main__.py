"""The program `vip-llava`, also as `python -m vip_llava`.

It only starts `vip_llava.cli.main`, inside a guard: importing the command line takes a moment, and Ctrl-C
in that moment ends the program as quietly as later.
"""

from __future__ import annotations

import sys

__all__ = ["run"]


def run() -> int:
    """Run the program with the arguments of the process and return its exit code."""
    try:
        from vip_llava.cli.main import main
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(run())
