"""`python -m zopilot_gpu.cli`, for where the command is not installed, as in the image."""

from zopilot_gpu.cli import app

app()
