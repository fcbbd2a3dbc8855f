"""The file of the default network without its instance heads, for tests of a plain semantic network."""

import tempfile
from pathlib import Path

from tfiseg.runtime.networks.model_variants import Variant
from tfiseg.runtime.networks.session import DEFAULT_MODEL

_folder = tempfile.TemporaryDirectory(prefix="tfiseg-plain-")
PLAIN_MODEL = Path(_folder.name) / DEFAULT_MODEL.name
PLAIN_MODEL.write_bytes(Variant(heads=False).read(DEFAULT_MODEL))
