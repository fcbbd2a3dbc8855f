"""``python -m tfiseg``: run the program ``tfiseg``."""

import sys

from .cli.main import main

sys.exit(main())
