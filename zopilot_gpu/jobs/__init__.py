"""Jobs: prompts that are asked now and answered later, kept in SQLite until they are collected, and callbacks that say so.

    api.jobs ──▶ queue ──▶ store (SQLite, one writer)      queue   feeds the runner, a few jobs at a time
                   │  ╰──▶ board (memory)                  board   the text of running jobs, for those who watch
                   ╰─────▶ courier ──▶ destination         courier signs and delivers; destination says where to, if at all

Knows states, times and text; refuses routes, the wire's models and tensors: how a job is done is a function that it is given.
"""
