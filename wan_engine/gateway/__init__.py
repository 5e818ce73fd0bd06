"""Serves the hosted APIs in front of one queue of jobs: doors, a database of jobs, and backends
that render.

`app.py` has a job's way through it on one page. It never imports torch: the engine runs in a
separate process (`backends/own_engine.py`), or on a Runpod endpoint (`backends/endpoint.py`).
"""
