import fnmatch
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning_vlm_callbacks.selectors import SelectorError, select_modules, select_parameters
from torch import nn

quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])

NAMES = ["a", "b", "ab", "layers", "lora_B", "default", "weird[0]", "st*r"]


class Scale(nn.Module):
    """A leaf with parameters of its own; small, as trees of them are built by the hundred."""

    def __init__(self, shared=None):
        super().__init__()
        self.weight = nn.Parameter(nn.init.zeros_(nn.Linear(1, 1).weight)) if shared is None else shared
        self.bias = nn.Parameter(self.weight.detach().clone(), requires_grad=False)


@st.composite
def trees(draw):
    """Module trees with lists, second names for whole modules, tied and missing parameters."""
    made, weights = [], []

    def module(depth):
        if made and draw(st.integers(0, 5)) == 0:
            return draw(st.sampled_from(made))
        kind = draw(st.sampled_from(["leaf", "bare", "list", "sequential", "named"][: 5 if depth else 2]))
        new = nn.ReLU()
        if kind == "leaf":
            new = Scale(draw(st.sampled_from(weights)) if weights and draw(st.booleans()) else None)
            weights.append(new.weight)
        elif kind == "named":
            new = named(depth)
        elif kind != "bare":
            children = [module(depth - 1) for _ in range(draw(st.integers(0, 4)))]
            new = nn.ModuleList(children) if kind == "list" else nn.Sequential(*children)
        made.append(new)
        return new

    def named(depth):
        new = nn.Module()
        for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True)):
            new.add_module(name, module(depth - 1))
        return new

    root = named(3)
    root.register_parameter("gate", draw(st.sampled_from([None, Scale().weight])))
    return root


@st.composite
def globs(draw, root):
    """Mostly a real name of the tree with stretches of it replaced by stars."""
    known = [*dict(root.named_modules(remove_duplicate=False)), *dict(root.named_parameters())]
    glob = draw(st.sampled_from([name for name in known if not set(name) & set("[*")]))
    for _ in range(draw(st.integers(1, 2))):
        start, stop = sorted([draw(st.integers(0, len(glob))), draw(st.integers(0, len(glob)))])
        glob = f"{glob[:start]}*{glob[stop:]}"
    return glob


def selectors(root):
    pieces = st.sampled_from([*NAMES, ".", ".", "*", "[0]", "[-1]", "[0:2]", "[::2]", "[5]", "[", "part"])
    known = [*dict(root.named_modules()), *dict(root.named_parameters())]
    return globs(root) | st.sampled_from(known) | st.lists(pieces, max_size=5).map("".join)


def names(named, ids):
    return [name for name, node in named if id(node) in ids]


def modules(*args):
    return list(select_modules(*args))


def parameters(*args):
    return list(select_parameters(*args))


def outcome(select, *args):
    """The names chosen, or None if the selectors were refused; any other exception is a failure."""
    try:
        return select(*args)
    except SelectorError:
        return None


@quick
@given(trees())
def test_every_name_selects_exactly_its_own_module_or_parameter(root):
    for name, module in list(root.named_modules(remove_duplicate=False))[1:]:
        assert modules(root, name) == names(root.named_modules(), {id(module)})
        assert list(select_modules(root, name).values()) == [root.get_submodule(name)]
    for name, parameter in root.named_parameters(remove_duplicate=False):
        assert parameters(root, name) == names(root.named_parameters(), {id(parameter)})
        assert next(iter(select_parameters(root, name).values())) is root.get_parameter(name)


@quick
@given(trees(), st.data())
def test_a_glob_is_fnmatch_over_full_names_then_topmost(root, data):
    glob = data.draw(globs(root))
    fits = re.compile(fnmatch.translate(glob)).match if all(glob.split(".")) else lambda name: False
    matches = [module for name, module in root.named_modules(remove_duplicate=False) if fits(name)]
    below = {id(inner) for module in matches for inner in module.modules() if inner is not module}
    top = {id(module) for module in matches} - below
    assert outcome(modules, root, glob) == (names(root.named_modules(), top) or None)

    wanted = {id(p) for module in matches for p in module.parameters()}
    wanted |= {id(p) for name, p in root.named_parameters(remove_duplicate=False) if fits(name)}
    assert outcome(parameters, root, glob) == (names(root.named_parameters(), wanted) or None)


@quick
@given(
    st.integers(0, 7),
    st.sampled_from([nn.ModuleList, lambda items: nn.Sequential(*items)]),
    st.tuples(*[st.none() | st.integers(-9, 9)] * 3),
)
def test_slices_and_indices_are_those_of_a_python_list(size, container, fields):
    items = [nn.Sequential(Scale()) for _ in range(size)]
    root = nn.ModuleDict({"m": nn.ModuleDict({"layers": container(items)})})
    start, stop, step = fields
    text = ":".join("" if field is None else str(field) for field in fields)
    inside = all(bound is None or -size <= bound <= size for bound in (start, stop))
    expected = items[start:stop:step] if inside and step != 0 else []
    found = outcome(modules, root, f"m.layers[{text}]")
    assert found == ([f"m.layers.{i}" for i, item in enumerate(items) if item in expected] or None)
    below = outcome(parameters, root, f"m.layers[{text}].0.weight")
    assert below == (found and [f"{name}.0.weight" for name in found])

    if start is not None:
        inside = -size <= start < size
        one = [f"m.layers.{range(size)[start]}"] if inside else None
        assert outcome(modules, root, f"m.layers[{start}]") == one


@quick
@given(trees(), st.data(), st.sampled_from([modules, parameters]))
def test_a_list_is_the_union_in_named_order_and_refused_if_one_is(root, data, select):
    wanted = data.draw(st.lists(selectors(root), max_size=5))
    parts = {"part": ["a"], "a.layers": ["b"]}
    single = {selector: outcome(select, root, selector, parts) for selector in wanted}
    order = [name for name, _ in (root.named_modules() if select is modules else root.named_parameters())]
    good = [selector for selector in wanted if single[selector]]
    union = [name for name in order if any(name in single[selector] for selector in good)]
    assert select(root, good, parts) == union
    assert select(root, (*reversed(good), *good), parts) == union
    assert outcome(select, root, wanted, parts) == (union if len(good) == len(wanted) else None)


@quick
@given(trees(), st.data())
def test_parameters_are_those_below_the_modules(root, data):
    selector = data.draw(selectors(root))
    found = outcome(modules, root, selector)
    if found and "*" not in selector:  # a glob also meets parameters by their own names
        below = {id(p) for name in found for p in root.get_submodule(name).parameters()}
        assert outcome(parameters, root, selector) == (names(root.named_parameters(), below) or None)


class Model(nn.Module):
    """The skeleton of a vision-language model: two lists of layers, a projector, a tied head."""

    def __init__(self):
        super().__init__()

        def layer():
            attention = nn.ModuleDict({"q_proj": nn.Linear(2, 2), "v_proj": nn.Linear(2, 2)})
            return nn.ModuleDict({"self_attn": attention, "mlp": nn.Linear(2, 2)})

        self.visual = nn.ModuleDict({"blocks": nn.ModuleList([layer(), layer()]), "merger": nn.Linear(2, 2)})
        layers = nn.ModuleList(layer() for _ in range(6))
        embed = nn.Embedding(4, 2)
        self.language_model = nn.ModuleDict({"embed": embed, "layers": layers, "norm": nn.ReLU()})
        self.lm_head = nn.Linear(2, 4, bias=False)
        self.lm_head.weight = embed.weight
        self.parts = {"vision": ["visual.blocks"], "projector": ["visual.merger"], "audio": []}
        self.parts |= {"language": ["language_model", "lm_head"], "head": ["lm_head.weight"]}
        self.parts["language.layers"] = ["language_model.layers"]


@pytest.fixture
def model():
    return Model()


def test_parts_the_longest_name_wins_at_a_border(model):
    assert modules(model, "vision") == ["visual.blocks"]
    assert modules(model, "language") == ["language_model", "lm_head"]
    longest = {"language": ["lm_head"], "language.layers": ["visual.blocks"], "lang": ["lm_head"]}
    assert modules(model, "language.layers[0]", longest) == ["visual.blocks.0"]
    assert modules(model, "language.layers[-2:].mlp") == [f"language_model.layers.{i}.mlp" for i in (4, 5)]
    assert modules(model, "language.layers.3.mlp") == ["language_model.layers.3.mlp"]
    assert modules(model, "language_model.norm") == ["language_model.norm"]
    assert modules(model, "vision[0].*.q*") == ["visual.blocks.0.self_attn.q_proj"]


def test_the_argument_comes_before_the_attribute(model):
    assert modules(model, "vision", {"vision": ["visual"]}) == ["visual"]
    assert modules(model, "visual.merger", {}) == ["visual.merger"]
    with pytest.raises(SelectorError, match="the root has no 'vision'"):
        select_modules(model, "vision", parts={})
    # a part may be the root itself
    assert modules(model, "all", {"all": [""]}) == [""]
    assert modules(model.visual["blocks"], "all[-1].mlp", {"all": [""]}) == ["1.mlp"]
    assert modules(model, "all.visual", {"all": [""]}) == ["visual"]
    # an attribute of that name that is no mapping is somebody else's
    root = nn.ModuleDict({"head": nn.Linear(1, 1)})
    root.parts = nn.ModuleDict({"head": nn.ReLU()})
    assert modules(root, "head") == ["head"]


def test_a_dot_in_a_glob_is_a_dot_and_the_end_is_the_end():
    root = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.ReLU(), "bc": nn.ReLU()}), "axb": nn.ReLU()})
    assert modules(root, "a.*") == ["a.b", "a.bc"]
    assert modules(root, "*.b") == ["a.b"]


def test_tied_and_frozen_parameters(model):
    assert len(parameters(model, ["projector", "head"])) == 3
    assert parameters(model, "head") == ["language_model.embed.weight"]
    assert parameters(model, ["lm_head.weight", "language.embed"]) == ["language_model.embed.weight"]
    assert parameters(model, "*") == list(dict(model.named_parameters()))
    model.visual["merger"].weight.requires_grad_(False)
    assert parameters(model, "projector") == ["visual.merger.weight", "visual.merger.bias"]


def test_a_slice_takes_from_where_it_can(model):
    """Below a slice not every layer has to have the name, as in models that mix two kinds of layers."""
    mixed = nn.ModuleList(nn.ModuleDict({kind: nn.ReLU()}) for kind in ("attn", "cross", "attn"))
    assert modules(mixed, "[:].attn") == ["0.attn", "2.attn"]
    assert modules(model, "*[0].mlp") == ["visual.blocks.0.mlp", "language_model.layers.0.mlp"]
    assert parameters(nn.ParameterList([nn.Parameter(nn.Linear(1, 1).weight)] * 2), "[-1]") == ["0"]


def test_names_as_peft_makes_them():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=1, target_modules=["q_proj"], modules_to_save=["merger"])
    model = peft.get_peft_model(Model(), config)
    assert parameters(model, "*.lora_B*") == [
        name for name, _ in model.named_parameters() if "lora_B" in name
    ]
    assert all(name.endswith(".lora_B") for name in modules(model, "*.lora_B*"))
    last = "base_model.model.language_model.layers"
    assert parameters(model, f"{last}[-1].*.lora_A") == [f"{last}.5.self_attn.q_proj.lora_A.default.weight"]
    saved = "base_model.model.visual.merger.modules_to_save.default"
    assert modules(model, "*.modules_to_save.default") == [saved]


@pytest.mark.parametrize(
    ("selector", "says"),
    [
        (" ", "a selector is empty"),
        ("vison", "the root has no 'vison'; it has: visual, .*; parts: vision, .*; nearest: vision"),
        ("language.layer[0]", r"no 'layer'; it has: embed, layers, norm; .*nearest: language_model.layers"),
        ("language_model.layers.3.mpl", r"'language_model.layers.3' has no 'mpl'; it has: self_attn, mlp"),
        ("language.layers[-2:].mpl", r"'language_model.layers.4' has no .*nearest: .*layers.4.mlp"),
        ("merger", "nearest: visual.merger"),
        ("*.q_prj", r"fits '\*\.q_prj'.*nearest: q_proj"),
        ("language.layers[0].*.k", r"nothing in 'language_model.layers.0' fits '\*\.k'"),
        ("audio", r"has no part 'audio'; its parts: vision, projector, language, head, language.layers$"),
        ("language.layers[6]", "out of range: expected -6 to 5, as 'language_model.layers' has 6 items"),
        ("language.layers[4:8]", "out of range: expected -6 to 6, as"),
        ("language.layers[3:3]", "an empty slice"),
        ("projector[0]", r"'visual.merger' is not a list of layers; it has: weight, bias"),
        ("head", "found a parameter of 'lm_head', expected a module"),
        ("language.layers[0", r"bad brackets: a '\['"),
        ("language.layers[]", r"bad brackets: found \[\]"),
        ("language.layers[1:a]", r"bad brackets: found \[1:a\]"),
        ("language.layers[::0]", r"bad brackets: found \[::0\]"),
        ("language.layers[0]mlp", "after ']' comes"),
        ("visual..merger", "a name is missing"),
        (".visual", "a name is missing"),
    ],
)
def test_errors_say_what_there_is(model, selector, says):
    with pytest.raises(SelectorError, match=says) as error:
        select_modules(model, ["lm_head", selector])
    assert not selector.strip() or repr(selector) in str(error.value)


def test_other_errors(model):
    gap, stale = nn.ModuleDict({"0": nn.ReLU(), "2": nn.ReLU()}), {"vision": ["model.visual", "visual"]}
    for select, root, selector, parts, says in [
        (parameters, nn.Sequential(nn.ReLU()), "[0]", None, "no parameters in '0'"),
        (modules, model, "vision", stale, "stands for 'model.visual', but the root has no 'model'"),
        (modules, gap, "[1]", None, "not numbered 0 to 1 but 0, 2"),
        (modules, model, 3, None, "expected a string or a list of strings; found 3"),
        (parameters, model, ["vision", None], None, "expected a string or a list of strings"),
    ]:
        with pytest.raises(SelectorError, match=says):
            select(root, selector, parts)
    assert modules(model, []) == []


@pytest.mark.parametrize(
    ("selector", "found"),
    [("l[50%:]", [2, 3, 4]), ("l[:50%]", [0, 1]), ("l[20%:80%]", [1, 2, 3]), ("l[0%:100%:2]", [0, 2, 4])],
)
def test_hundredths_of_a_list(selector, found):
    root = nn.ModuleDict({"l": nn.ModuleList(nn.Linear(1, 1) for _ in range(5))})
    assert modules(root, selector) == [f"l.{one}" for one in found]


@pytest.mark.parametrize("selector", ["l[50%]", "l[::50%]", "l[101%:]", "l[-40%:]", "l[100%:]", "l[:0%]"])
def test_hundredths_that_make_no_sense(selector):
    with pytest.raises(SelectorError, match=r"bad brackets|empty slice"):
        select_modules(nn.ModuleDict({"l": nn.ModuleList(nn.Linear(1, 1) for _ in range(5))}), selector)
