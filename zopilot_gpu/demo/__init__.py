"""The embedded demo model: a tiny real Mixtral in NF4, and everything that made it.

`MODEL` is its directory, in the Hugging Face layout, and part of the package: a service without weights on its
volume can serve it. Nothing is loaded on import.
"""

from zopilot_gpu.store.locate import DEMO_DIRECTORY as MODEL

__all__ = ["MODEL"]
