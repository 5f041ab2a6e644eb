"""Breaks checkpoints in ways that strangers may: at random, from a seed, and by hand."""

import copy
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEEP = 100_000
VALUES: tuple[Callable[[], Any], ...] = tuple(
    (lambda value=value: copy.deepcopy(value))
    for value in (
        None, True, False, 0, 1, -1, 2, 3.5, -0.5, 1e-320, 1e308, 10**9, 10**18, -(10**18), 10**400, float("nan"),
        float("inf"), "", "x", "nan", "../../secret.json", "\ud800", "\x1b[2J", "x" * 100_000, "org/kernel:name",
        "torch.load", "auto", "sdpa", "float8_e4m3fn", [], {}, [[]], [1], [-1, 2], [None], ["x"], list(range(5000)),
        {"": None}, {"a": {"b": []}}, {"__class__": "os.system"},
    )
)  # fmt: skip
FIELDS = (
    "transformers_weights", "attn_implementation", "_attn_implementation", "per_layer_config", "pruned_heads",
    "quantization_config", "auto_map", "visual_plan", "rope_scaling", "rope_parameters", "torch_dtype", "dtype",
    "tie_word_embeddings", "use_cache", "output_attentions", "id2label", "num_labels", "problem_type", "max_tiles",
    "layer_types", "tokenizer_class", "processor_class", "chat_template", "vision_feature_layer", "head_dim",
    "model_type", "architectures", "added_tokens_decoder", "extra_special_tokens", "torchscript", "sub_configs",
    "is_encoder_decoder", "tp_plan", "base_model_tp_plan", "name_or_path", "image_processor_type", "size",
)  # fmt: skip
"""Fields that are added. They mean something to transformers."""
TEMPLATES = (
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{{ 'a'|center(10**9) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% if 1 %}" * 4000,
    "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
    "{{ lipsum.__globals__['os'].system('touch MARKER') }}",
    "{% for %}",
    "x" * 400_000,
)


class Marker:
    """A pickle of it makes a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def copy_checkpoint(source: Path, folder: Path) -> None:
    """Copies a checkpoint. Its weights are the same file, which mutations replace and never write into."""
    folder.mkdir()
    for file in source.iterdir():
        if file.suffix == ".safetensors":
            os.link(file, folder / file.name)
        elif file.is_file():
            shutil.copyfile(file, folder / file.name)


def rewritten(file: Path, content: bytes) -> None:
    """Replaces a file, which others may share."""
    if file.is_dir() and not file.is_symlink():
        return
    file.unlink(missing_ok=True)
    file.write_bytes(content)


def break_at_random(folder: Path, outside: Path, rng: random.Random) -> tuple[str, bool]:
    """Breaks a checkpoint once or twice. Returns how, and whether it must be refused for what was done last.

    Args:
        folder: of the checkpoint.
        outside: a folder beside it with `secret.json`, `secret.safetensors` and `secret.bin`, which nothing may read.
        rng: decides.
    """
    ways = [_break_field] * 12 + [_break_bytes] * 3 + [_break_place] * 2 + [_break_weights] * 4 + [_break_template]
    done = [rng.choice(ways)(folder, outside, rng) for _ in range(rng.choice((1, 1, 1, 2)))]
    return ", ".join(how for how, _ in done), done[-1][1]


def _files(folder: Path, pattern: str = "*") -> list[Path]:
    """Files that can be read here, too."""
    return sorted(file for file in folder.glob(pattern) if file.is_file() and file.stat().st_size < 10**8)


def _break_field(folder: Path, outside: Path, rng: random.Random) -> tuple[str, bool]:
    files = _files(folder, "*.json")
    if not files:
        return "nothing", False
    config = [file for file in files if file.name == "config.json"]
    file = rng.choice(files + config * 6)
    try:
        content = json.loads(file.read_text())
        places = [place for place in _places(content) if "vocab" not in place]
    except (ValueError, OSError, RecursionError):  # it is broken already
        return "nothing", False
    if not places:
        return "nothing", False
    place = rng.choice(places)
    *parents, last = place
    node = content
    for part in parents:
        node = node[part]
    how = rng.choice(("value", "value", "value", "value", "delete", "add", "wrap", "scale", "twice", "deep"))
    text = None
    if how == "value":
        node[last] = rng.choice(VALUES)()
    elif how == "delete":
        del node[last]
    elif how == "add":
        name = rng.choice(FIELDS)
        (node if isinstance(node, dict) else content)[name] = rng.choice(VALUES)()
        place = (*parents, name)
    elif how == "wrap":
        node[last] = rng.choice(([node[last]], {"x": node[last]}, str(node[last])))
    elif how == "scale" and isinstance(node[last], int | float):
        node[last] = node[last] * rng.choice((-1, 0, 0.5, 2, 1000, 10**15))
    elif how == "twice":
        text = json.dumps(content)
        text = text[:-1] + f", {json.dumps(next(iter(content)))}: 1}}"
    elif how == "deep":
        node[last] = "DEEP"
        deep = rng.choice((70, 900, DEEP))
        text = json.dumps(content).replace('"DEEP"', "[" * deep + "]" * deep)
    rewritten(file, (json.dumps(content) if text is None else text).encode("utf-8", "surrogatepass"))
    return f"{how} {file.name} {'.'.join(map(str, place))}", how in ("twice", "deep")


def _places(content: Any, above: tuple = ()) -> list[tuple]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place for key, value in items for place in [(*above, key), *_places(value, (*above, key))]]


def _break_bytes(folder: Path, outside: Path, rng: random.Random) -> tuple[str, bool]:
    files = _files(folder)
    if not files:
        return "nothing", False
    file = rng.choice(files)
    content = bytearray(file.read_bytes())
    how = rng.choice(("cut", "flip", "empty", "zeros", "list", "utf-16", "bom", "text"))
    if how == "cut":
        content = content[: rng.randrange(len(content) + 1)]
    elif how == "flip":
        for _ in range(rng.randrange(1, 20) if content else 0):
            content[rng.randrange(min(len(content), 4000))] = rng.randrange(256)
    elif how == "utf-16" and file.suffix != ".safetensors":
        content = bytearray(content.decode("utf-8", "replace").encode("utf-16"))
    else:
        content = bytearray({"empty": b"", "zeros": bytes(len(content)), "list": b"[1, 2]", "text": b'"x"'}.get(how, b"\xef\xbb\xbf" + content))  # fmt: skip # noqa: E501
    rewritten(file, bytes(content))
    return f"{how} {file.name}", False


def _break_place(folder: Path, outside: Path, rng: random.Random) -> tuple[str, bool]:
    names = [*sorted(file.name for file in folder.iterdir()), "adapter_config.json", "tokenizer.model", "vocab.json"]
    file = folder / rng.choice(names)
    how = rng.choice(("gone", "folder", "pipe", "link", "loop", "broken link", "device", "huge"))
    if file.is_dir():
        return "nothing", False
    file.unlink(missing_ok=True)
    if how == "folder":
        file.mkdir()
    elif how == "pipe":
        os.mkfifo(file)
    elif how == "huge":
        with file.open("wb") as opened:
            opened.truncate(10**10)
    elif how != "gone":
        secret = outside / ("secret.safetensors" if file.suffix == ".safetensors" else "secret.json")
        file.symlink_to({"link": secret, "loop": file, "device": "/dev/zero"}.get(how, outside / "nowhere"))
    return f"{how} {file.name}", how != "gone" and file.suffix in (".json", ".jinja", ".safetensors")


def _break_weights(folder: Path, outside: Path, rng: random.Random) -> tuple[str, bool]:
    weights, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    payload = pickle.dumps(Marker(outside / "marker"))
    how = rng.choice(("pickle", "bin", "index bin", "index path", "index odd", "header", "adapter"))
    if how == "pickle":
        rewritten(weights, payload)
    elif how == "bin":
        rewritten(folder / "pytorch_model.bin", payload)
        weights.unlink(missing_ok=True)
    elif how.startswith("index"):
        rewritten(folder / "evil.bin", payload)
        weights.unlink(missing_ok=True)
        paths = (
            "../outside/secret.safetensors",
            str(outside / "secret.safetensors"),
            "a/../../outside/secret.safetensors",
        )
        odd = (None, 3, [], "", ".", "..", "/", "x\x00.safetensors", "evil.pt", "nowhere.safetensors")
        name = {"index bin": "evil.bin", "index path": rng.choice(paths), "index odd": rng.choice(odd)}[how]
        rewritten(index, json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": name}}).encode())
    elif how == "header":
        length = rng.choice((0, 1, 8, 10**6, 10**12, 2**63, 2**64 - 1))
        header = rng.choice((b"{}", b"[" * DEEP, b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}'))
        rewritten(weights, length.to_bytes(8, "little") + header)
    else:
        adapter = {"peft_type": "LORA", "base_model_name_or_path": str(outside)}
        rewritten(folder / "adapter_config.json", json.dumps(adapter).encode())
        rewritten(folder / "adapter_model.bin", payload)
    return f"weights {how}", True


def _break_template(folder: Path, outside: Path, rng: random.Random) -> tuple[str, bool]:
    text = rng.choice(TEMPLATES)
    rewritten(folder / "chat_template.jinja", text.replace("MARKER", str(outside / "marker")).encode())
    return f"template {text[:30]}", "__class__" not in text
