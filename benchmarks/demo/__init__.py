"""The demo checkpoint's making: pictures and dialogues by generator, a tokenizer, a trainer, the export.

    python -m benchmarks.demo.train RUN --minutes 90      # trains, or goes on with what RUN holds
    python -m benchmarks.demo.export RUN mdinfer/demo     # writes the published layout
    python -m benchmarks.accuracy --checkpoint demo       # what it gets right

Everything is drawn from seeds; nothing is downloaded.
"""
