"""Tokenizers that processes of a test import, which have nothing else to import then."""

from __future__ import annotations

import os

from minllm.tokenizer.bytes import Bytes


class Lossy(Bytes):
    def encode_texts(self, texts):
        return super().encode_texts([text.replace("19 ", "") for text in texts])


class Talkative(Bytes):
    def encode_texts(self, texts):
        print("encoding", flush=True)
        os.write(1, b"more")
        return super().encode_texts(texts)
