"""`python -m trainer.task`, Vertex AI's conventional entry point, is `trainer train`."""

import sys

from trainer.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
