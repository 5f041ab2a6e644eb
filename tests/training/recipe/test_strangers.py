"""Recipes, and the files that they name, of people who mean no good or take no care: each is refused in one line."""

import json

import pytest

from modeling.user_error import UserError
from training.recipe.file import RECIPES, load_recipe


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    monkeypatch.chdir(RECIPES.parent)


TEXTS = {
    "seed: 1\nname: a\nseed: 2\n": "the key 'seed' stands twice in one section in .*line 3",
    "data: {train: [{split: a, split: b}]}": "the key 'split' stands twice in one section",
    "a: &a [*a]": "more than 24 sections in each other",
    "<<: {seed: 1}": "a key is '<<', allowed: a text",
    "1: 2": "a key is '1', allowed: a text",
    "x: !!python/object/apply:os.system [a]": "the tag tag:yaml.org,2002:python/object/apply:os.system is not",
    "seed: !!int '3'": "the tag tag:yaml.org,2002:int is not read",
    "x: " + "9" * 5_000: "got '9999.*allowed: numbers of 64 bits",
    "seed: 0x_": "got '0x_', allowed: numbers of 64 bits",
    "[" * 500: "more than 24 sections in each other",
    "- 1\n" * 10_000: "more than 5000 values",
    "x" * 10_000_000: "more than 65536 characters",
    "a0: &a0 [1]\n" + "".join(f"a{n + 1}: &a{n + 1} [{','.join([f'*a{n}'] * 10)}]\n" for n in range(9)): (
        "more than 5000 values"
    ),
    "x: \ud83d": "not valid YAML: 'utf-8' codec",
}


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20])
def test_texts(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match=f"^{path}: .*{TEXTS[text]}") as refused:
        load_recipe(str(path))
    assert len(str(refused.value)) < 480


SETTINGS = {
    "debug": {
        "seed=4294967296": "seed: got 4294967296; input should be less than 4294967296",
        "compare.2.plan.seed=4294967296": "compare.2.plan.seed: got 4294967296",
        "data.world.seed=-1": "data.world.seed: got -1",
        "training.learning_rate=.inf": "training.learning_rate: got inf; input should be a finite number",
        "training.learning_rate=nan": "training.learning_rate: got 'nan'; input should be a finite number",
        "training.learning_rate=1e400": "training.learning_rate: got '1e400'; input should be a finite number",
        "data.train.0.min_ratings={a: .inf}": "data.train.0.min_ratings.a: got inf; input should be a finite number",
        "training.learning_rate=true": "training: learning_rate: got True, allowed: neither true nor false",
        "training.max_steps=yes": "training: max_steps: got True, allowed: neither true nor false",
        "plan.budget.visual_flops=true": "plan.budget: visual_flops: got True",
        "data.world.splits.test.rows=true": "data.world.splits.test: rows: got True",
        "data.train.0.min_ratings={a: true}": r"data.train.0: min_ratings: got \{'a': True\}",
        "name=" + "x" * 300: "name: got 'xxx.*should have at most 100 characters",
        "name=" + "x" * 60_000: "name: got 'xxx.*should have at most 100 characters",
        "seed=" + "1" * 401: "got '111.*allowed: numbers of 64 bits",
        "training.deepspeed=" + "x" * 300: r"training: deepspeed: no file 'xxx.*File name too long",
        'training.deepspeed="a\\0b"': r"training: deepspeed: no file 'a\\x00b'",
        "training.deepspeed=recipes": "training: deepspeed: no file 'recipes' that can be read",
        "training.deepspeed=recipes/debug.yaml": "deepspeed: recipes/debug.yaml: not JSON",
        "training.deepspeed=recipes/plans/g_search_tiny_llava.json": "no DeepSpeed config: one of train_batch_size",
        "plan={planner: file, path: no_such_plan.json}": "plan: 'no_such_plan.json': no such plan file",
        "plan={planner: file, path: recipes/deepspeed/zero2.json}": "zero2.json: visual plan: unknown key 'bf16'",
        "plan={planner: stack, of: [{planner: keep}, {planner: file, path: x}]}": "plan.of.1: 'x': no such plan file",
        "lora.rank=1000000000": "lora.rank: got 1000000000; input should be less than or equal to 65536",
        "data.world.splits={../../escaped: {part: test, rows: 1}}": (
            "data.world.splits.../../escaped.*: got '../../escaped'; string should match pattern"
        ),
        "a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r.s.t.u.v.w.x.y.z=1": "more than 24 sections in each other",
        "compare." + "9" * 5_000 + ".name=x": "is not a position in a list of 3",
        "compare.0={a: 1, a: 2}": "override .*the key 'a' stands twice",
    },
    "tiny_frontier": {
        "planners.yopo.seeds=[]": "planners.yopo.seeds: .*should have at least 1 item",
        "planners.yopo.seeds=[1, 2, 1]": "planners.yopo: seeds: got 1 twice",
        "planners.yopo.seeds=[4294967296]": "planners.yopo.seeds.0: got 4294967296",
        "planners.yopo.budgets=[]": "planners.yopo.budgets: .*should have at least 1 item",
        "budgets=[0.25, 0.12, 0.04, 0.02, 0.1200000001]": "budgets: got 0.12 twice, allowed: numbers that differ",
    },
    "tiny_teacher": {
        "teacher.phases.0.name=tower": "tower is another stage of the run; choose another name",
        "teacher.model.patch_size=7": "teacher: model: got pictures of 96 and patches of 7 pixels",
        "teacher.model.layers=1000000000000000000": "teacher.model.layers: got 1000000000000000000",
        "teacher.output=data": "teacher: output: 'data' is there and is no model, which alone would be replaced",
        "teacher.output=/": "teacher: output: got '/', allowed: a folder that has a name",
    },
}
CASES = [(name, override) for name, overrides in SETTINGS.items() for override in overrides]


@pytest.mark.parametrize("name, override", CASES, ids=lambda text: text[:40])
def test_settings(name, override):
    with pytest.raises(UserError, match=SETTINGS[name][override]) as refused:
        load_recipe(name, [override])
    assert len(str(refused.value)) < 480 and str(refused.value).isprintable()


def test_a_name_that_is_no_path():
    for name in ("x" * 5_000, "a\0b", "\ud83d"):
        with pytest.raises(UserError, match="no recipe '.*neither a file nor one of recipes/") as refused:
            load_recipe(name)
        assert len(str(refused.value)) < 480


@pytest.mark.parametrize(
    "config, message",
    [
        ('{"train_batch_size": "auto", "train_batch_size": 3}', "the key 'train_batch_size' stands twice in an object"),
        ("[1]", "got list, a DeepSpeed config is an object"),
        ("{}", "no DeepSpeed config: one of train_batch_size"),
        ('{"train_batch_size": true}', "train_batch_size: got True, allowed: 'auto', or an integer of 1 or more"),
        ('{"train_batch_size": "auto", "zero_optimization": 3}', "zero_optimization: got 3, allowed: an object"),
        ('{"train_batch_size": "auto", "zero_optimization": {"stage": 4}}', "zero_optimization.stage: got 4, allowed"),
        ("[" * 100_000, r"not JSON \(maximum recursion"),
        (" " * 10_000_000, "more than 262144 characters"),
    ],
)
def test_deepspeed_configs(tmp_path, config, message):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=message) as refused:
        load_recipe("debug", [f"training.deepspeed={tmp_path / 'config.json'}"])
    assert len(str(refused.value)) < 480
    (tmp_path / "config.json").write_text(json.dumps({"train_batch_size": "auto"}))
    load_recipe("debug", [f"training.deepspeed={tmp_path / 'config.json'}"])


def test_an_alias_is_a_copy(tmp_path):
    """An override of one part must not change the other."""
    text = (RECIPES / "debug.yaml").read_text().replace("train: [{split: train}]", "train: &rows [{split: train}]")
    (tmp_path / "own.yaml").write_text(text.replace("calibration: [{split: calibration}]", "calibration: *rows"))
    data = load_recipe(str(tmp_path / "own.yaml"), ["data.train.0.weight=2"]).data
    assert data.train[0].weight == 2 and data.calibration[0].weight is None


def test_one_message_is_one_short_line():
    message = str(UserError("a\n\tb \x1b[2J" + "x" * 10_000_000 + "\ud83d end"))
    assert message.startswith("a b \\x1b[2Jxxx") and message.endswith("x\\ud83d end") and len(message) == 479
    assert str(UserError(message)) == message
