"""Times small graphs of layers in a runtime, and writes the milliseconds to a CSV file.

This folder imports nothing but numpy and the runtime, and its own modules by relative imports, so that
``export.py --latency_table`` can copy it to a folder that is taken to another device. There it reads ``graphs.json``
and writes ``latency.csv``:

    python -m graph_timer --runtime onnx --threads 1

Rows that the CSV file has already are not measured again: an interrupted run goes on where it stopped.
"""
