"""Measures a card behind `zopilot-gpu bench gpu`. Knows the model, its kernels, the engine and the store; no HTTP.

    run ── sections, each on its own ──▶ check · kernels · model · load · baseline ──▶ report, roofline, JSON
     └ sizes: how large    made_up: weights without a source    clock: medians    peers: others' figures, the targets

How it measures: numbers are compared with float64 before anything is timed; weights and inputs are random, never zero;
kernels are timed as replays of CUDA graphs over several copies of the weights, so that no cache holds them; medians; what is
compared is measured in the same run. A section that fails is in the report with its error, and the others go on.

Try it: `zopilot-gpu bench gpu`; without a card `zopilot-gpu bench gpu --demo`, which runs all of it at a tiny size.
"""
