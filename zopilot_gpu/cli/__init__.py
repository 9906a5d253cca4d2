"""`zopilot-gpu`: what a person types. Knows terminals; talks to the service over HTTP as any client does.

zopilot-gpu serve [--demo]        start the service on this machine
zopilot-gpu prompt "..." [...]    ask a running service
zopilot-gpu chat [...]            talk with a running service
zopilot-gpu jobs submit "..."     ask now, collect later: submit, get, watch, cancel, ls
zopilot-gpu bench serve [...]     load a running service and measure its answers
zopilot-gpu bench gpu [...]       measure a card, without a model
zopilot-gpu prepare [...]         pack a model before a service needs it
zopilot-gpu store ls|verify|gc    what is packed on the volumes
zopilot-gpu doctor [--json]       what will work on this machine, and what will not
zopilot-gpu tune                  measure once how the kernels run best on this GPU
"""

import typer

from zopilot_gpu.cli import bench, jobs
from zopilot_gpu.cli.chat import chat
from zopilot_gpu.cli.doctor import doctor
from zopilot_gpu.cli.prepare import prepare
from zopilot_gpu.cli.prompt import prompt
from zopilot_gpu.cli.serve import serve
from zopilot_gpu.cli.store import store
from zopilot_gpu.cli.tune import tune

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Mixtral in 4-bit NF4 behind POST /prompt.")
app.command()(serve)
app.command()(prompt)
app.command()(chat)
app.add_typer(jobs.app, name="jobs")
app.add_typer(bench.app, name="bench")
app.command()(prepare)
app.add_typer(store, name="store")
app.command()(doctor)
app.command()(tune)
