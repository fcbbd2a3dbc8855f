"""The network that comes with tfiseg without its instance heads, as a file."""

import tempfile
from pathlib import Path

from tfiseg.runtime.networks.model_variants import Variant
from tfiseg.runtime.networks.session import DEFAULT_MODEL

_folder = tempfile.TemporaryDirectory(prefix="tfiseg-plain-")
PLAIN_MODEL = Path(_folder.name) / DEFAULT_MODEL.name
PLAIN_MODEL.write_bytes(Variant(heads=False).read(DEFAULT_MODEL))
