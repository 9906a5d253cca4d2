"""The OpenAI-compatible routes, `/v1/*`: another spelling of the one event stream. What is supported: docs/api.md.

shapes.py answers.py   the wire: what comes in, what goes out
errors.py              OpenAI's shape of an error
messages.py tools.py   a conversation as turns; tools as text for the model and as a schema for its answer
parse.py               bytes -> request -> jobs
telling.py             the jobs' events -> choices, whole or streamed
routes.py              the routes
"""
