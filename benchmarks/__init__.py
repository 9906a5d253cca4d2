"""Comparisons that a person runs on a machine of theirs; no part of the package. Results are in docs/benchmarks/.

python -m benchmarks.compare      our service, both backends, against the service as people write it; on the CPU, demo model
python -m benchmarks.step_time    the engine alone: a step's time by batch size and by context length
"""
