"""What a stranger's checkpoint may hold, by name: each is refused by its file and field before a library reads it."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.build import build_student
from checkpoints.internvl.convert import convert_internvl
from checkpoints.load import load_checkpoint
from checkpoints.probe import probe_batch
from modeling.configuration_sparse_llava import SparseLlavaConfig
from modeling.user_error import MOST_CHARACTERS, UserError
from modeling.visual_plan import VisualPlan
from tests.checkpoints.internvl.published_internvl import write_published
from tests.checkpoints.tiny_dense import NUM_LAYERS, tiny_dense
from tests.fuzz.broken_checkpoints import TEMPLATES, Marker, copy_checkpoint, rewritten

PLAN = VisualPlan.dense(NUM_LAYERS).replace(0, heads=1, ffn=5)


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    dense, processor = tiny_dense()
    dense.save_pretrained(root / "dense")
    build_student(dense, PLAN).save_pretrained(root / "sparse")
    for name in ("dense", "sparse"):
        processor.save_pretrained(root / name)
    write_published(root / "published", "Phi3ForCausalLM", "300M")
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder for checkpoints, with files beside it that nothing may read."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.json").write_text("{}")
    save_file({"lm_head.weight": torch.zeros(1)}, outside / "secret.safetensors")
    return tmp_path


def copied(base: Path, place: Path) -> Path:
    folder = place / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    copy_checkpoint(base, folder)
    return folder


def set_field(file: str, name: str, value: object) -> Callable[[Path], None]:
    """Sets a field, given by its dotted name, of a JSON file."""

    def change(folder: Path) -> None:
        fields = json.loads((folder / file).read_text())
        *parents, last = name.split(".")
        node = fields
        for parent in parents:
            node = node[parent]
        node[last] = value
        rewritten(folder / file, json.dumps(fields).encode())

    return change


def index_of(name: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        rewritten(folder / "evil.bin", pickle.dumps(Marker(folder.parent / "marker")))
        content = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
        rewritten(folder / "model.safetensors.index.json", json.dumps(content).encode())

    return change


def link_to(file: str, target: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(folder / target)

    return change


def text_of(file: str, text: str) -> Callable[[Path], None]:
    return lambda folder: rewritten(folder / file, text.encode())


def twice(file: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / file).read_text().strip()
        rewritten(folder / file, f'{text[:-1]}, "same": 1, "same": 2}}'.encode())

    return change


def refused(load: Callable[[Path], object], folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load(folder)
    assert str(error.value).isprintable() and len(str(error.value)) <= MOST_CHARACTERS
    assert not list(folder.parent.rglob("marker")), "code of a file ran"


DEEP = "[" * 200 + "]" * 200
OUTSIDE = "../outside/secret"
JSON_FILES = (
    "config.json", "tokenizer.json", "generation_config.json", "processor_config.json", "tokenizer_config.json",
)  # fmt: skip
TOWER = {"model_type": "detr", "use_pretrained_backbone": True, "backbone": "a"}
BOTH = {
    "an index with pickles": (index_of("evil.bin"), "index.json: weight_map: lm_head.weight: got 'evil.bin', allowed"),
    "an index of the folder above": (index_of(f"{OUTSIDE}.safetensors"), "weight_map: .*allowed: names of files"),
    "an index of a link": (index_of(".."), "weight_map: .*allowed: names of files"),
    "an index of no texts": (index_of(3), "weight_map: .*allowed: names of files"),
    "an absolute index": (index_of("/tmp/x.safetensors"), "weight_map: .*allowed: names of files"),
    "an index without tensors": (
        lambda folder: (index_of("x")(folder), text_of("model.safetensors.index.json", "{}")(folder)),
        "index.json: weight_map: expected an object",
    ),
    "linked weights": (link_to("model.safetensors", f"{OUTSIDE}.safetensors"), "safetensors: is a link to .*secret"),
    "a linked config": (link_to("config.json", f"{OUTSIDE}.json"), "config.json: is a link to .*secret"),
    "a linked tokenizer": (link_to("tokenizer.json", f"{OUTSIDE}.json"), "tokenizer.json: is a link to .*secret"),
    "a device": (link_to("generation_config.json", "/dev/zero"), "generation_config.json: is a link to /dev/zero"),
    "a circle": (link_to("tokenizer.json", "tokenizer.json"), "tokenizer.json: (cannot be read|is a link)"),
    "a pickle under another name": (
        lambda folder: rewritten(folder / "model.safetensors", pickle.dumps(Marker(folder.parent / "marker"))),
        "header|more than its files",
    ),
    "an adapter": (
        text_of("adapter_config.json", '{"base_model_name_or_path": "a/b"}'),
        "holds adapter_config.json, so that transformers would load an adapter",
    ),
    "weights of another kind": (
        set_field("config.json", "transformers_weights", "adapter_model.bin"),
        "config.json: transformers_weights: names a file of weights",
    ),
    "a kernel": (
        set_field("config.json", "attn_implementation", "org/kernel:name"),
        "config.json: attn_implementation: got 'org/kernel:name', allowed: an attention of transformers'",
    ),
    "a kernel for the text model": (
        set_field("config.json", "text_config._attn_implementation", {"": "org/kernel"}),
        "text_config._attn_implementation: got",
    ),
    "a tower with weights of its own": (
        set_field("config.json", "vision_config", TOWER),
        "vision_config.model_type: got 'detr', allowed: clip_vision_model|not a config|not a whole",
    ),
    "endless layers": (
        set_field("config.json", "text_config.num_hidden_layers", 10**18),
        "config.json: text_config.num_hidden_layers: got 1000000000000000000, allowed: integers from 1 to 1,000",
    ),
    "no layers": (
        set_field("config.json", "vision_config.num_hidden_layers", True),
        "vision_config.num_hidden_layers: got True, allowed: integers from 1 to",
    ),
    "a huge vocabulary": (
        set_field("config.json", "text_config.vocab_size", 2**24),
        "its config describes [0-9,]+ weights, more than its files of [0-9,]+ bytes can hold",
    ),
    "a layer that the tower lacks": (
        set_field("config.json", "vision_feature_layer", 9),
        "vision_feature_layer: got 9, the vision tower has 2 layers",
    ),
    "pictures that are no squares": (
        set_field("config.json", "vision_config.image_size", [24, 48]),
        r"vision_config.image_size: got .24, 48., allowed: one integer",
    ),
    "a dropout": (
        set_field("config.json", "text_config.attention_dropout", 1e9),
        "attention_dropout: got 1000000000.0, allowed",
    ),
    "not a number": (
        set_field("config.json", "text_config.rms_norm_eps", float("nan")),
        "config.json: got the number NaN, allowed: finite ones",
    ),
    "a text for a number": (
        set_field("config.json", "text_config.hidden_size", "x" * 10**6),
        "text_config.hidden_size: got 'xxx.*allowed: integers from 1",
    ),
    "a type that transformers checks": (
        set_field("config.json", "text_config.mlp_bias", 3),
        "Validation error for field 'mlp_bias': TypeError",
    ),
    "tiles": (
        set_field("processor_config.json", "image_processor.size", {"height": 10**9, "width": 24}),
        "processor_config.json: image_processor.size.height: got 1000000000, allowed",
    ),
    "a flag": (
        set_field("processor_config.json", "image_processor.do_rescale", "x"),
        "image_processor.do_rescale: got 'x', allowed: true or false",
    ),
    "a token": (
        set_field("tokenizer_config.json", "eos_token", 3),
        "tokenizer.json, tokenizer_config.json: no readable",
    ),
    "beams": (
        set_field("generation_config.json", "num_beams", 10**9),
        "generation_config.json: num_beams: got 1000000000",
    ),
    "loops in loops": (
        text_of("chat_template.jinja", TEMPLATES[0]),
        "chat template : takes more than|chat template : makes",
    ),
    "a long template": (
        text_of("chat_template.jinja", "x" * 400_000),
        "chat_template.jinja: got 400,000 bytes, allowed: up to",
    ),
    **{f"deep {file}": (text_of(file, f'{{"a": {DEEP}}}'), f"{file}: .*nested deeper than 64") for file in JSON_FILES},
    **{
        f"too deep {file}": (text_of(file, '{"a": ' + "[" * 10**5 + "]" * 10**5 + "}"), f"{file}: not a JSON file")
        for file in ("config.json", "tokenizer.json")
    },
    **{f"a key twice in {file}": (twice(file), f"{file}: the key 'same' stands twice") for file in JSON_FILES},
}


LOADED_BY_BOTH = ("index", "linked", "adapter", "pickle", "kernel", "tower", "another kind", "vocabulary", "lacks")
"""Words in the names of cases that are tried on sparse checkpoints as well, whose model has a loader of its own."""

PLANS = {
    "a unit that is not there": ({"layers": [{"heads": [7]}, {}, {}]}, "layer 0: heads: got 7, the model has 2"),
    "more neurons": ({"layers": [{"ffn": 10**18}, {}, {}]}, "layer 0: ffn: got 1000000000000000000, the model has 64"),
    "fewer layers": ({"layers": [{}]}, "visual plan: got 1 layers, the model has 3"),
    "endless layers": ({"layers": [{}] * 2000}, "visual plan: got 2000 layers, allowed: up to 1000"),
    "a true": ({"version": True, "layers": [{}, {}, {}]}, "visual plan: got version True"),
    "a radius": ({"layers": [{"radius": 10**12, "bidirectional": True}, {}, {}]}, "layer 0: radius: got 1000000000000"),
    "no plan": ([], "Field 'visual_plan'|visual plan: expected an object"),
    "a text": ({"layers": "x" * 10**6}, "visual plan: layers: got 'xxx.*allowed: a list"),
}

PUBLISHED = {
    "max_dynamic_patch": (-1, "max_dynamic_patch: got -1, allowed: integers from 1 to 64"),
    "min_dynamic_patch": (13, r"min_dynamic_patch, max_dynamic_patch\): got \(13, 12\)"),
    "llm_config.attention_dropout": (
        1e9,
        "llm_config.attention_dropout: got 1000000000.0, allowed: numbers from 0 to 1",
    ),
    "vision_config.dropout": (-0.5, "vision_config.dropout: got -0.5, allowed: numbers from 0 to 1"),
    "vision_config.layer_norm_eps": (float("nan"), "got the number NaN, allowed: finite ones"),
    "llm_config.rms_norm_eps": (0, "llm_config.rms_norm_eps: got 0, allowed: numbers from 1e-30 to 1"),
    "llm_config.rope_theta": (-10000.0, "llm_config.rope_theta: got -10000.0, allowed: numbers from 1e-30"),
    "llm_config.num_hidden_layers": (
        10**18,
        "llm_config.num_hidden_layers: got 1000000000000000000, allowed: integers",
    ),
    "llm_config.rope_scaling.long_factor": ([1.0, -2.0], "long_factor: got -2.0, allowed: numbers from"),
    "force_image_size": (10**9, "force_image_size: got 1000000000, allowed: integers from 1 to 8,192"),
}


def converted(folder: Path, place: Path) -> None:
    shutil.rmtree(place / "converted", ignore_errors=True)
    convert_internvl(folder, place / "converted")


def try_all(cases: dict, base: Path, place: Path, load: Callable[[Path], object]) -> None:
    """Tries each case on a copy of a checkpoint that loads."""
    load(copied(base, place))
    for name, (change, message) in cases.items():
        folder = copied(base, place)
        change(folder)
        print(name)  # seen where it fails
        refused(load, folder, message)


def test_a_dense_checkpoint(bases, place):
    try_all(BOTH, bases["dense"], place, lambda folder: load_checkpoint(folder, "auto"))


def test_a_sparse_checkpoint(bases, place):
    cases = {name: case for name, case in BOTH.items() if any(word in name for word in LOADED_BY_BOTH)}
    try_all(cases, bases["sparse"], place, lambda folder: load_checkpoint(folder, "auto"))


def test_a_plan_is_refused_as_the_config_is_made(bases, place):
    """So a stranger who trusts the checkpoint's files reads one line too: the config is among them."""
    cases = {name: (set_field("config.json", "visual_plan", plan), message) for name, (plan, message) in PLANS.items()}
    base = bases["sparse"]
    try_all(cases, base, place, lambda folder: load_checkpoint(folder, "auto"))
    del cases["no plan"]  # transformers' own check
    try_all(cases, base, place, SparseLlavaConfig.from_pretrained)


def test_a_published_internvl(bases, place):
    cases = {name: (set_field("config.json", name, value), message) for name, (value, message) in PUBLISHED.items()}
    try_all(cases, bases["published"], place, lambda folder: converted(folder, place))


def test_a_list_of_units_in_a_checkpoint_counts(bases, place):
    """The first unit and the first neurons are those that the integers name."""
    (integers, processor), folder = load_checkpoint(bases["sparse"], "auto"), copied(bases["sparse"], place)
    plan = PLAN.replace(0, heads=(0,), ffn=(0, 1, 2, 3, 4))
    set_field("config.json", "visual_plan", plan.to_dict())(folder)
    batch = probe_batch(processor)
    with torch.no_grad():
        assert torch.equal(load_checkpoint(folder, "auto")[0](**batch).logits, integers(**batch).logits)


def test_a_snapshot_of_the_hubs_cache_loads(bases, place):
    """Its files are links to blobs beside the snapshots. The same links are refused elsewhere."""
    repository = place / "models--owner--name"
    snapshot, blobs = repository / "snapshots" / "0a1b2c", repository / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for number, file in enumerate(sorted(bases["sparse"].iterdir())):
        shutil.copyfile(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    load_checkpoint(snapshot, "auto")
    elsewhere = repository / "other" / "0a1b2c"
    shutil.copytree(snapshot, elsewhere, symlinks=True)
    refused(lambda folder: load_checkpoint(folder, "auto"), elsewhere, "is a link to")


def test_weights_that_the_config_does_not_describe_take_no_memory(bases, place):
    """What is missing would be made up before transformers says so."""
    folder = copied(bases["dense"], place)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "norm" in name}
    (folder / "model.safetensors").unlink()
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    refused(lambda path: load_checkpoint(path, "auto"), folder, "more than its files of")


def test_a_message_is_one_line_of_bounded_length():
    error = UserError(f"a.json: name\n  got {'x' * 10**6!r}, \x1b[2J allowed: 1")
    assert str(error).startswith("a.json: name got 'xxx") and str(error).endswith(r"\x1b[2J allowed: 1")
    assert len(str(error)) == MOST_CHARACTERS and str(error).isprintable()
    assert str(UserError("short")) == "short"
