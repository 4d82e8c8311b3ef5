"""Measurements that compare like with like within one run; `python -m benchmarks` runs them."""
