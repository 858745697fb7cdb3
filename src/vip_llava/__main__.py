"""`python -m vip_llava` is the program `vip-llava`."""

from __future__ import annotations

import sys

from vip_llava.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
