"""Comparisons that a person runs on a machine of theirs; no part of the package. Results are in docs/benchmarks/.

python -m benchmarks.compare      our service, both backends, against the service as people write it; on the CPU, demo model
"""
