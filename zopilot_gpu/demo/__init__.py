"""The embedded demo model: a tiny real Mixtral in NF4, and everything that made it.

`MODEL` is its directory, in the Hugging Face layout, and part of the package: a service without weights on its
volume can serve it. Nothing is loaded on import.
"""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
