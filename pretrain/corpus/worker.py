"""A worker process of a build: `python -m pretrain.corpus.worker SOCKET TOKENIZER MIN_TOKENS`.

Reads tasks from the socket and answers each with what it holds; ends when the other side is gone.
"""

from __future__ import annotations

import signal
import sys
from multiprocessing.connection import Connection

from pretrain.corpus.encode import Encoder
from pretrain.corpus.tokenizer import load_tokenizer


def main(socket: int, tokenizer: str, min_tokens: int) -> None:
    """Work until the parent closes the socket or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which decides
    encoder = Encoder(load_tokenizer(tokenizer), min_tokens)
    with Connection(socket) as parent:
        try:
            while True:
                parent.send(encoder.run(parent.recv()))
        except (EOFError, ConnectionError):
            return


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
