"""Vertex AI's conventional entry point: `python -m trainer.task` runs `trainer train`."""

import sys

from trainer.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
