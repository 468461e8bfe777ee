"""`judge=transformers`: a chat model in a folder, run by `transformers` on this machine.

This module's annotations are real objects, not strings, for the reason that `minllm.grading.judge` gives.
"""

import functools
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from minllm.errors import UserError, first_line, neighbour
from minllm.grading.judge import Judge, Question, Reply
from minllm.grading.judge.fitting import require
from minllm.schema.options import Count, Place

OTHER_TEMPERATURE = 0.7
"""At which a question is asked again; the first time, the most likely token is always taken."""

READ = (".json", ".jinja", ".safetensors", ".model", ".txt")
"""The endings of the files that a model and its tokenizer consist of."""


@dataclass(frozen=True, kw_only=True)
class Transformers(Judge):
    """A causal language model with a chat template, from a folder of safetensors. Nothing is downloaded, and no code
    from the folder is run.

    model: the folder
    device: where it runs; `auto` is the fastest available
    batch_size: how many questions are answered at a time
    """

    model: Place | None = None
    max_tokens: Count = 1000
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    batch_size: Count = 8

    advice: ClassVar[str] = " Choose a larger judge.model, or raise judge.max_tokens."

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def folder(self) -> Path:
        return Path(str(self.model)).expanduser().resolve()

    def identity(self) -> Mapping[str, Any]:
        files = sorted(path for path in self.folder.iterdir() if path.suffix in READ)
        stats = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
        return {"files": stats, "max_tokens": self.max_tokens, "system": self.system}

    def check_ready(self) -> None:
        require("jsonschema")
        if importlib.util.find_spec("transformers") is None:
            raise UserError(
                "judge=transformers needs transformers, which isn't installed. Type: pip install transformers"
            )
        if self.model is None:
            raise UserError("judge=transformers needs a model: type judge.model=<folder>.")
        if not self.folder.is_dir():
            raise UserError(f"judge.model={self.model} is not a folder.{neighbour(self.folder)}")
        for what, pattern in (("config.json", "config.json"), ("weights in safetensors", "*.safetensors")):
            if not any(self.folder.glob(pattern)):
                raise UserError(
                    f"judge.model={self.model} has no {what}. Choose a folder that transformers' save_pretrained"
                    " wrote."
                )

    def reply(
        self, questions: Sequence[Question], attempt: int, receive: Callable[[int, Reply], None]
    ) -> None:
        prompts = [self.prompt(question) for question in questions]
        fitting = []
        for index, prompt in enumerate(prompts):
            if len(prompt) + self.max_tokens > self.longest:
                reason = f"it reads at most {self.longest:,} tokens, the reply (judge.max_tokens) included"
                receive(index, Reply(None, reason, has_failed=True))
            else:
                fitting.append(index)
        fitting.sort(key=lambda index: len(prompts[index]))  # so that batches need little padding
        for first in range(0, len(fitting), self.batch_size):
            batch = fitting[first : first + self.batch_size]
            self.count_requests(len(batch))
            replies = self.generate([prompts[index] for index in batch], attempt, first)
            for index, reply in zip(batch, replies):
                receive(index, reply)

    def prompt(self, question: Question) -> list[int]:
        """Return a question's tokens."""
        import jinja2

        messages = [
            {**message, "content": self.without_control_tokens(message["content"])}
            for message in self.messages(question, with_schema=True)
        ]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError as error:
            instead = " For a model without system messages, type judge.system=false." if self.system else ""
            raise UserError(
                f"The chat template of judge.model={self.model} rejects a question: {first_line(error)}.{instead}"
            ) from error
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def without_control_tokens(self, text: str) -> str:
        """Return a text with a space inside what the tokenizer would read as a token of the chat, such as <|im_end|>.

        A foreign text could otherwise end its message and begin one in another role.
        """
        return self.control_tokens.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def generate(self, prompts: Sequence[Sequence[int]], attempt: int, seed: int) -> list[Reply]:
        """Return the replies to a batch of prompts."""
        import torch

        inputs = self.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        inputs = inputs.to(self.network.device)
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        sampled = {"do_sample": True, "temperature": OTHER_TEMPERATURE}
        with torch.inference_mode(), torch.random.fork_rng(), self.memory_errors():
            torch.manual_seed(attempt * 2**32 + seed)
            tokens_BT = self.network.generate(
                **inputs,
                **(sampled if attempt else greedy),
                max_new_tokens=self.max_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        return [
            self.read(len(prompt), new.tolist())
            for prompt, new in zip(prompts, tokens_BT[:, inputs["input_ids"].shape[1] :])
        ]

    def read(self, tokens_in: int, new: Sequence[int]) -> Reply:
        """Return what a reply's tokens say."""
        ends = {self.tokenizer.eos_token_id, self.tokenizer.pad_token_id, *self.ends}
        length = next((number for number, token in enumerate(new) if token in ends), len(new))
        is_whole = length < self.max_tokens
        reason = None if is_whole else f"its reply is longer than judge.max_tokens={self.max_tokens} allows"
        text = self.tokenizer.decode(new[:length], skip_special_tokens=True)
        return Reply(text, reason, tokens_in=tokens_in, tokens_out=length)

    # ---- the model

    @functools.cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        with self.loading_errors():
            tokenizer = AutoTokenizer.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False
            )
        if not tokenizer.chat_template:
            raise UserError(
                f"judge.model={self.model} has no chat template, so it can't be asked anything. Choose a model that was"
                " trained to answer questions."
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @functools.cached_property
    def control_tokens(self) -> re.Pattern[str]:
        """Matches the tokens that were added to the vocabulary, but for those of spaces alone."""
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values()}
        ordered = sorted(filter(str.strip, added), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")

    @functools.cached_property
    def network(self) -> Any:
        from transformers import AutoModelForCausalLM

        from minllm.training.machine import choose_device

        try:
            device = choose_device(self.device)
        except UserError as error:
            raise UserError(str(error).replace("train.device", "judge.device")) from error
        with self.loading_errors(), self.memory_errors():
            network, info = AutoModelForCausalLM.from_pretrained(
                self.folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype="auto",
                output_loading_info=True,
            )
            if info["missing_keys"]:  # transformers fills them with random numbers
                raise ValueError(f"its weights lack {min(info['missing_keys'])}")
            return network.to(device).eval()

    @property
    def longest(self) -> int:
        """The longest sequence that it can read."""
        return getattr(self.network.config.get_text_config(), "max_position_embeddings", None) or 2**31

    @property
    def ends(self) -> Sequence[int]:
        """The tokens that end a reply."""
        ends = self.network.generation_config.eos_token_id
        return ends if isinstance(ends, list) else [ends]

    @contextmanager
    def loading_errors(self) -> Iterator[None]:
        from safetensors import SafetensorError

        try:
            yield
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
            raise UserError(f"judge.model={self.model} can't be loaded: {first_line(error)}.") from error

    @contextmanager
    def memory_errors(self) -> Iterator[None]:
        import torch

        try:
            yield
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"Out of memory with judge.batch_size={self.batch_size}. Type a smaller one, or a smaller judge.model."
            ) from error
