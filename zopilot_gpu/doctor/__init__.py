"""What will work on this machine and what will not, before money is spent on it.

    facts.gather(settings, depth) ─▶ Facts ─▶ checks.examine ─▶ [Check(name, verdict, value, reason, remedy)]

`facts`, with `probes`, is all that touches the machine; `checks` only computes, so every machine can be tried on any (see
`tests/unit/doctor/machines.py`). The floors below say the same sentences when they fail: a check asks them, it does not know
better. Try it: `zopilot-gpu doctor --demo`.
"""
