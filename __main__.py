"""``python -m tfiseg``: the same program as ``tfiseg``."""

import sys

from .cli.main import main

sys.exit(main())
