"""Everything that touches the world outside: one module a service, each behind a port.

Only here do SDKs, clocks, chance, threads and the environment appear. An adapter turns what its
SDK does into the values, events and errors of `ports.py`, and decides nothing else.
"""
