"""What the integration and interoperability tests share: the program, the data, and tiny models of every family."""
import itertools
import json
import os
import pathlib
import random
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass

import filelock
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
BUILD = pathlib.Path(os.environ.get("DYNSLICE_BUILD_DIR", REPOSITORY / "build"))

# transformers keeps the modeling code of the models that it loads: a folder for each process that runs tests.
os.environ["HF_HOME"] = str(BUILD / "hf" / os.environ.get("PYTEST_XDIST_WORKER", "main"))

# What is compared with text is not coloured, on a terminal either.
os.environ["NO_COLOR"] = "1"


def path_from_environment(variable):
    """The path that the variable names; the test is skipped when it is unset, and fails when nothing is there."""
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"SKIPPED: {variable} is not set")
    path = pathlib.Path(value)
    assert path.exists(), f"{variable} is {path}, which does not exist"
    return path


@pytest.fixture(scope="session")
def build_dir():
    return BUILD


def built_program(build_dir, name):
    program = build_dir / "bin" / name
    assert program.exists(), f"{program} is not there; build it with tools/setup.sh --tests"
    return program


@pytest.fixture(scope="session")
def binary(build_dir):
    return built_program(build_dir, "dynslice")


@pytest.fixture(scope="session")
def helper(build_dir):
    """helper("tokenize_main"): the path of a test program beside dynslice."""
    return lambda name: built_program(build_dir, name)


@pytest.fixture(scope="session")
def data_dir():
    return path_from_environment("DYNSLICE_DATA_DIR")


@pytest.fixture(scope="session")
def model():
    """A real model: SmolLM2-135M as a GGUF file."""
    return path_from_environment("DYNSLICE_TEST_MODEL")


@pytest.fixture(scope="session")
def gemma():
    """Another real model, of another architecture: gemma-3-270m as a GGUF file."""
    return path_from_environment("DYNSLICE_TEST_GEMMA")


@pytest.fixture(scope="session")
def dequantized(model, tmp_path_factory):
    """Folder of the real model as transformers itself dequantizes it, in fp32. All processes of a run share one: it takes
    half a minute to make."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder /= "dequantized"
    with filelock.FileLock(f"{folder}.lock"):
        if not folder.exists():
            import transformers

            source = {"pretrained_model_name_or_path": str(model.parent), "gguf_file": model.name}
            transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(f"{folder}.part")
            network = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
            network.hf_quantizer = None  # it would refuse to write what it does not know any more to be quantized
            del network.config.quantization_config
            network.save_pretrained(f"{folder}.part")
            os.rename(f"{folder}.part", folder)
    return folder


@pytest.fixture(scope="session")
def wikitext_start(data_dir, tmp_path_factory):
    """The first 60,000 characters of wikitext-2's test split (14,000 tokens): llama.cpp tokenizes all that it is given."""
    path = tmp_path_factory.mktemp("wikitext") / "wikitext-start.txt"
    path.write_text((data_dir / "wikitext-2-raw" / "wiki.test.raw").read_text(encoding="utf-8")[:60_000], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def llama_perplexity():
    return path_from_environment("DYNSLICE_LLAMA_PERPLEXITY")


@pytest.fixture(scope="session")
def llama_quantize():
    return path_from_environment("DYNSLICE_LLAMA_QUANTIZE")


@dataclass
class Result:
    """What a finished program left."""

    code: int
    stdout: str
    stderr: str

    def json(self):
        """Standard output as the one JSON object that --json promises."""
        return json.loads(self.stdout)


def environment_with(changes):
    return {**os.environ, "OMP_WAIT_POLICY": "passive", **{name: str(value) for name, value in (changes or {}).items()}}


def run_program(command, expect=0, env=None, timeout=600, **options):
    """Runs a command without standard input. `expect` is the exit code that it must have; None takes any."""
    __tracebackhide__ = True  # a report of this frame would print the whole environment, secrets included
    done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          encoding="utf-8", env=environment_with(env), timeout=timeout, **options)
    return as_expected(Result(done.returncode, done.stdout, done.stderr), expect, command)


def as_expected(result, expect, command):
    __tracebackhide__ = True
    if expect is not None and result.code != expect:
        pytest.fail(f"exit code {result.code}, expected {expect}: {' '.join(map(str, command))}\n"
                    f"--- stdout\n{result.stdout[-4000:]}\n--- stderr\n{result.stderr[-4000:]}")
    return result


class WarmProgram:
    """Runs dynslice in processes forked from one that has loaded LibTorch (tests/warm_main.cpp), which saves 0.3 s each.

    What reads its environment while libraries are loaded, or is to be seen on pipes or a terminal, needs the program itself.
    """

    LOADED_WITH = ("OMP_", "GOMP_", "KMP_", "MKL_", "LD_", "GLIBC_", "MALLOC_")

    def __init__(self, program, warm):
        ours, theirs = socket.socketpair()
        self.program, self.socket, self.lock = program, ours, threading.Lock()
        self.server = subprocess.Popen([warm, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                                       env=environment_with({"GOMP_SPINCOUNT": "20000"}))  # as the program sets it
        theirs.close()

    def takes(self, changes, options):
        return not any(name.startswith(self.LOADED_WITH) for name in changes) and options.keys() <= {"cwd"}

    def number(self):
        data = self.socket.recv(4, socket.MSG_WAITALL)
        assert len(data) == 4, f"warm_main has ended with {self.server.wait()}"
        return int.from_bytes(data, sys.byteorder, signed=True)

    def run(self, arguments, changes, timeout, cwd="."):
        request = json.dumps({"arguments": [str(self.program), *map(str, arguments)], "environment": environment_with(changes),
                              "folder": os.path.abspath(cwd)}).encode()
        with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as err:
            socket.send_fds(self.socket, [len(request).to_bytes(4, sys.byteorder)], [out.fileno(), err.fileno()])
            self.socket.sendall(request)
            process = self.number()
            in_time = threading.Timer(timeout, os.kill, (process, signal.SIGKILL))
            in_time.start()
            status = self.number()
            if in_time.finished.is_set():
                pytest.fail(f"not done in {timeout} s: {' '.join(map(str, arguments))}")
            in_time.cancel()
            texts = []
            for stream in (out, err):
                stream.seek(0)
                texts.append(stream.read())
        return Result(os.waitstatus_to_exitcode(status), *texts)

    def close(self):
        self.socket.close()
        self.server.wait()


@pytest.fixture(scope="session")
def run_command():
    """run_command([program, argument, ...], expect=0, env={...}) -> Result, for any program."""
    return run_program


@pytest.fixture(scope="session")
def cold_run(binary):
    """As `run`, but every launch starts the program itself: for tests that measure its process."""
    return lambda *arguments, **options: run_program([binary, *arguments], **options)


@pytest.fixture(scope="session")
def warm(binary, helper):
    program = WarmProgram(binary, helper("warm_main"))
    yield program
    program.close()


@pytest.fixture(scope="session")
def run(binary, warm):
    """run("eval", folder, "--json", expect=0, env={...}) -> Result: dynslice with these arguments.

    DYNSLICE_TEST_COLD=1 starts the program itself for each.
    """

    def run_dynslice(*arguments, expect=0, env=None, timeout=600, **options):
        __tracebackhide__ = True
        if not warm.takes(env or {}, options) or os.environ.get("DYNSLICE_TEST_COLD") or not warm.lock.acquire(blocking=False):
            return run_program([binary, *arguments], expect, env, timeout, **options)
        try:
            done = warm.run(arguments, env or {}, timeout, **options)
        finally:
            warm.lock.release()
        return as_expected(done, expect, [binary, *arguments])

    return run_dynslice


@dataclass
class KilledRuns:
    """What came of a command that was killed at its saves until it was done."""

    kills: int
    places: list  # where the runs after the first one resumed: "layer 3 of 6 (slicing)"
    done: Result  # the last run's, which was not killed


@pytest.fixture(scope="session")
def kill_and_resume(run):
    """kill_and_resume(command, ...) -> KilledRuns: dynslice with --resume, killed and started again until it is done.

    The journal is saved at every layer boundary, and the next element of `stops`, which are taken over and over again,
    says at which save a run is killed (DYNSLICE_STOP_AFTER). With the default ones each run keeps exactly one save more
    than the run before it: it is killed behind its first save, or within its second. Every run but the first must say
    where it resumes. `after_kill` is called after each kill.
    """

    def run_until_done(command, stops=("1", "2:data", "2:state"), env=None, after_kill=lambda: None):
        kills, places = 0, []
        for stop in itertools.islice(itertools.cycle(stops), 300):
            done = run(*command, "--resume", expect=None,
                       env={**(env or {}), "DYNSLICE_JOURNAL": "every", "DYNSLICE_STOP_AFTER": stop})  # fmt: skip
            resumed = re.findall("^Resuming at (.*)", done.stderr, re.MULTILINE)
            assert bool(resumed) == (kills > 0), done.stderr
            places += resumed
            if done.code == 0:
                return KilledRuns(kills, places, done)
            assert done.code == -signal.SIGKILL, done.stderr
            kills += 1
            after_kill()
        pytest.fail(f"not done after {kills} kills; resumed at {places}")

    return run_until_done


class Reader:
    """Reads what a program writes into a pipe or onto a terminal, as it comes."""

    def __init__(self, descriptor):
        self.descriptor = descriptor
        self.unread = ""  # read from the descriptor, and not by a test

    def wait_for(self, pattern):
        """Returns once the pattern is there, with everything up to it; fails when the program ends, or hangs."""
        while not (found := re.search(pattern, self.unread)):
            if not self._read():
                pytest.fail(f"no {pattern!r} in {self.unread!r}")
        text, self.unread = self.unread[:found.end()], self.unread[found.end():]
        return text

    def rest(self):
        """Everything until the program ends."""
        while self._read():
            pass
        text, self.unread = self.unread, ""
        return text

    def _read(self):
        ready, _, _ = select.select([self.descriptor], [], [], 120)
        if not ready:
            pytest.fail(f"nothing came for two minutes after {self.unread!r}")
        try:
            piece = os.read(self.descriptor, 65536)
        except OSError:  # how a terminal says that its other side is closed
            return False
        self.unread += piece.decode(errors="replace")
        return bool(piece)


@pytest.fixture(scope="session")
def window():
    """Token ids [1, 48] of the tiny models' vocabulary."""
    import torch

    return torch.randint(VOCABULARY, (1, 48), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def our_logits(helper, run_command, window, tmp_path_factory):
    """our_logits(checkpoint): dynslice's logits of the window, [1, 48, vocabulary] fp32."""
    import numpy as np
    import torch

    folder = tmp_path_factory.mktemp("ids")
    np.asarray(window[0], dtype=np.int32).tofile(folder / "ids")

    def compute(checkpoint):
        run_command([helper("logits_main"), checkpoint, folder / "ids", folder / "logits"])
        return torch.from_numpy(np.fromfile(folder / "logits", dtype=np.float32)).view(1, window.shape[1], -1)

    return compute


# ---- Tiny models ----------------------------------------------------------------------------------------------

WORDS = ("a the of and to in is was for on with as by at from that it his her they were which this have had not are "
         "but one two first last river city house king army song album game team season north south old new small "
         "large early late wrote built called known played moved found made became began ended although because "
         "don't it's 1914 1998 25 % @-@ , ; : ( ) \" naïve café Zürich").split()


def make_text(sentences, seed=0):
    """Repeatable pseudo-English with numbers, contractions, runs of spaces and letters beyond ASCII."""
    chosen = random.Random(seed)
    lines = []
    for _ in range(sentences):
        words = chosen.choices(WORDS, k=chosen.randint(4, 18))
        lines.append(" ".join(words).capitalize() + chosen.choice([".", ".", "!", " ?", " ...  and  so on."]))
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """About 30,000 tokens of text under the tiny models' tokenizer."""
    path = tmp_path_factory.mktemp("text") / "tiny.txt"
    path.write_text(make_text(2000, seed=1), encoding="utf-8")
    return path


VOCABULARY = 512


def train_tokenizer():
    """A byte-level BPE tokenizer of 512 entries."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([make_text(3000, seed=2)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


@pytest.fixture(scope="session")
def tiny_tokenizer():
    return train_tokenizer()


def tiny_config(family, **overrides):
    import transformers

    kinds = {"llama": transformers.LlamaConfig, "mistral": transformers.MistralConfig, "qwen2": transformers.Qwen2Config,
             "qwen3": transformers.Qwen3Config, "gemma3_text": transformers.Gemma3TextConfig,
             "smollm3": transformers.SmolLM3Config, "seed_oss": transformers.SeedOssConfig,
             "gemma2": transformers.Gemma2Config, "ministral3": transformers.Ministral3Config,
             "olmo2": transformers.Olmo2Config, "olmo3": transformers.Olmo3Config, "granite": transformers.GraniteConfig,
             "exaone4": transformers.Exaone4Config, "hunyuan_v1_dense": transformers.HunYuanDenseV1Config,
             "phi3": transformers.Phi3Config, "glm4": transformers.Glm4Config, "opt": transformers.OPTConfig, "qwen3_5_text": transformers.Qwen3_5TextConfig,
             "gemma4_text": transformers.Gemma4TextConfig}
    settings = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4,
                "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
                "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, **overrides}
    if family == "mistral":
        settings.setdefault("sliding_window", None)
    if family in ("qwen3", "seed_oss"):
        settings.setdefault("head_dim", 24)  # so that all heads are wider than the stream, as they are there
    if family == "smollm3":
        settings.setdefault("no_rope_layer_interval", 3)
        settings["tie_word_embeddings"] = overrides.get("tie_word_embeddings", True)
    if family in ("gemma2", "gemma3_text", "gemma4_text"):
        settings["tie_word_embeddings"] = overrides.get("tie_word_embeddings", True)
    types = ["full_attention" if layer % 3 == 2 else "sliding_attention" for layer in range(settings["num_hidden_layers"])]
    windows = {"sliding_window": 24, "layer_types": types}
    own = {
        "gemma3_text": {"head_dim": 24, "query_pre_attn_scalar": 24, **windows},
        "gemma2": {"head_dim": 24, "query_pre_attn_scalar": 24, **windows, "attn_logit_softcapping": 2.0,
                   "final_logit_softcapping": 3.0, "attn_implementation": "eager"},
        "ministral3": {"head_dim": 24, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
            "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}},
        "olmo3": windows,
        "granite": {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 2.0},
        "exaone4": windows,
        "hunyuan_v1_dense": {"head_dim": 24, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0, "alpha": 50.0}},
    }
    # Its last layer sees all whatever layer_types says, and the others have heads of another width.
    types_of_four = [*types[:-1], "full_attention"]
    own["gemma4_text"] = {"head_dim": 24, "global_head_dim": 32, "attention_k_eq_v": True, "num_global_key_value_heads": 1,
                          "hidden_size_per_layer_input": 0, "sliding_window": 24, "layer_types": types_of_four,
                          "final_logit_softcapping": 3.0}
    own["glm4"] = {"head_dim": 24, "attention_bias": True}
    own["qwen3_5_text"] = {"head_dim": 24, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 32,
                           "linear_value_head_dim": 32, "rope_parameters": {
                               "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25, "mrope_section": [1, 1, 1]}}
    if family == "opt":
        settings = {name: value for name, value in settings.items() if name != "num_key_value_heads"}
        settings["ffn_dim"] = settings.pop("intermediate_size")
        settings["word_embed_proj_dim"] = settings["hidden_size"]
        settings["tie_word_embeddings"] = overrides.get("tie_word_embeddings", True)
    for name, value in own.get(family, {}).items():
        settings.setdefault(name, value)
    return kinds[family](**settings)


def randomize(model, seed):
    """Weights that make every part matter: a fresh model's biases are zero and its norms one."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(0.1 * noise + (1.0 if "norm" in name else 0.0))
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.copy_(0.7 + 0.2 * torch.rand(buffer.shape, generator=generator))


def save_tiny_model(folder, tokenizer, family, seed=0, dtype="float32", max_shard_size="1GB", **config):
    """A random model as transformers saves it, with a tokenizer."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_config(tiny_config(family, **config))
    randomize(model, seed)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tiny_tokenizer):
    """tiny_model("llama" | "mistral" | "qwen2" | "qwen3" | "gemma3_text" | ..., seed=0, dtype="float32", max_shard_size="1GB", **config) -> folder.

    The same arguments give the same folder: tests read it and write elsewhere. Load the tokenizer with
    PreTrainedTokenizerFast: AutoTokenizer puts Qwen2's own pre-tokenizer in the place of the one in tokenizer.json.
    """
    made = {}

    def make(family="llama", seed=0, dtype="float32", max_shard_size="1GB", **config):
        key = json.dumps([family, seed, dtype, max_shard_size, config], sort_keys=True)
        if key not in made:
            # llama.cpp wants Phi-3's own tokens of a model whose name says phi3.
            made[key] = tmp_path_factory.mktemp(family.replace("phi3", "phi"))
            save_tiny_model(made[key], tiny_tokenizer, family, seed, dtype, max_shard_size, **config)
        return made[key]

    return make
