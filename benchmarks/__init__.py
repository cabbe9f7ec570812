"""One module a claim, each measuring ratios of two sides in one run on one machine.

``python -m benchmarks.bench_NAME [--quick] [--json FILE]``; ``python -m benchmarks.report`` runs
them all and writes ``docs/performance.md``. A missed target is reported and is no failure; a run
that could not be carried out ends with status 2. Loopback only, in a temporary home.
"""
