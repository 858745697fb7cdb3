"""The two servers that `benchmarks/serving.py` compares; each prints its URL.

    python benchmarks/serving_workers.py vip-llava | thread-per-request [options]

The second one runs each request in its own thread, which calls transformers' `generate` with a
streamer, as most small servers of such models do. It gets the same tokens and views.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from vip_llava import Assistant, load
from vip_llava.backends.native import NativeBackend
from vip_llava.serving.api.chat import build_request, parse_chat
from vip_llava.serving.api.schemas import ChatRequest
from vip_llava.serving.settings import Limits, make_settings

TEXT = "USER: What is the object within the red rectangle? ASSISTANT: It is a small brown dog. "


def random_assistant(size: str, device: str, dtype: str) -> Assistant:
    """Random weights with a small generated tokenizer, so that nothing is downloaded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from vip_llava.bench.bench_model import random_model
    from vip_llava.prompting.geometry import ImageGeometry
    from vip_llava.prompting.processor import Processor
    from vip_llava.prompting.templates import get_template

    torch.manual_seed(0)  # both servers have the same weights
    subject = random_model(size, device, getattr(torch, dtype))
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator([TEXT], trainer)
    # One word for each token id, so that every token is visible in the stream.
    rows = subject.model.get_input_embeddings().weight.shape[0]
    backend.add_tokens([f" word{number}" for number in range(backend.get_vocab_size(), rows - 1)])
    backend.add_special_tokens(["<image>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    geometry = ImageGeometry(mode="pad", size=subject.side)
    processor = Processor(
        tokenizer,
        geometry,
        get_template("llava_v1"),
        subject.image_token_id,
        subject.tokens_per_view,
    )
    return Assistant(NativeBackend(subject.model, processor, name=f"random {size}"))


def open_assistant(args: Any) -> Assistant:
    """The model that the options select."""
    if args.random:
        return random_assistant(args.random, args.device, args.dtype)
    return load(device=args.device, dtype=args.dtype)


def serve_ours(assistant: Assistant) -> None:
    """Run the project's server."""
    from vip_llava.serving.api.app import create_app
    from vip_llava.serving.middleware.server import run

    settings = make_settings(port=0, limits={"rate": 0, "answer_seconds": 3600})
    app = create_app({"m": assistant}, settings)
    run(app, settings, on_ready=lambda address: print(address, flush=True))


class Worker(BaseHTTPRequestHandler):
    """Handles one request in one thread."""

    assistant: Assistant
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer a chat request as a stream."""
        length = int(self.headers["content-length"])
        body = ChatRequest.model_validate_json(self.rfile.read(length))
        chat = parse_chat(body, Limits())
        request = build_request(chat, [each.url for each in chat.images], Limits())
        prepared = self.assistant.prepare(request, **chat.sampling)
        inputs = self.assistant.backend.processor([prepared.turns])
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for text in self._generated(inputs, prepared.sampling.max_new_tokens):
            piece = {"choices": [{"index": 0, "delta": {"content": text}}]}
            self.wfile.write(f"data: {json.dumps(piece)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def _generated(self, inputs: Any, tokens: int) -> Any:
        from transformers import TextIteratorStreamer

        processor, model = self.assistant.backend.processor, self.assistant.backend.model
        streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=3600)
        dtype = next(model.base_model.vision_tower.parameters()).dtype
        moved = {name: value.to(model.device) for name, value in inputs.items()}
        moved["pixel_values"] = moved["pixel_values"].to(dtype)
        stop = sorted(processor.stop_ids)

        def generate() -> None:
            with torch.inference_mode():
                model.generate(
                    **moved,
                    max_new_tokens=tokens,
                    do_sample=False,
                    eos_token_id=stop or None,
                    pad_token_id=stop[0] if stop else 0,
                    suppress_tokens=[processor.image_token_id],
                    streamer=streamer,
                )

        thread = threading.Thread(target=generate)
        thread.start()
        ends = [processor.tokenizer.decode([each]) for each in stop]
        for text in streamer:
            for end in ends:
                text = text.replace(end, "")
            if text:
                yield text
        thread.join()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def serve_threads(assistant: Assistant) -> None:
    """Run the server with one thread per request."""
    Worker.assistant = assistant
    server = ThreadingHTTPServer(("127.0.0.1", 0), Worker)
    server.request_queue_size = 128
    server.socket.listen(128)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("server", choices=("vip-llava", "thread-per-request"))
    parser.add_argument("--random")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    assistant = open_assistant(args)
    (serve_ours if args.server == "vip-llava" else serve_threads)(assistant)


if __name__ == "__main__":
    sys.exit(main())
