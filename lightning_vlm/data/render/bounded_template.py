"""Chat templates rendered as transformers renders them, with bounds on their work and on what they write.

A template is a program that comes with a model or from a config, and it runs for each sample. One that never
ends or writes a gigabyte would hang or kill a process, in data workers too, where no signal can stop it. So
each loop, call, operator and filter is counted while the template runs, and it is stopped at a limit.
"""

import functools
import time
from collections.abc import Callable
from datetime import datetime
from types import CodeType
from typing import Any

from jinja2 import Template, nodes
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from transformers.utils import chat_template_utils

from lightning_vlm.data.render.template_sizes import (
    TemplateLimit,
    size_of,
    size_of_call,
    size_of_filter,
    size_of_operation,
)

MOST_CHARACTERS = 1_000_000
"""How many characters a template may write in addition to the texts."""
MOST_STEPS = 200_000
"""How many rounds of loops, calls, operators and filters it may run. Real templates take about 20 a turn."""
PER_CHARACTER = 10
"""How many more characters and steps it gets for each character of the texts."""
SECONDS = 10.0
"""The processor time of one rendering. Steps mostly run out first; this stops single slow steps."""


class BoundedTemplate:
    """A Jinja template, compiled as transformers compiles chat templates.

    Args:
        text: The template.
        now: The time that `strftime_now` gives, so that all samples of a run get the same date.

    Raises:
        jinja2.TemplateSyntaxError: It can't be compiled.

    >>> BoundedTemplate("{% for m in messages %}{{ m.role }} {% endfor %}").render([{"role": "user"}])
    'user '
    >>> BoundedTemplate("{{ 'a' * 10**9 }}").render([])
    Traceback (most recent call last):
    lightning_vlm.data.render.template_sizes.TemplateLimit: it writes more than 1,000,000 characters
    """

    def __init__(self, text: str, now: datetime | None = None) -> None:
        self.text = text
        self.now = now or datetime.now()
        self._environment = _Environment(self.now)
        globals_ = self._environment.make_globals(None)
        self._template = Template.from_code(self._environment, _compiled(text), globals_)

    def __reduce__(self) -> tuple:
        # Compiled code can't be pickled for a data worker that doesn't fork.
        return type(self), (self.text, self.now)

    @property
    def asked_for_date(self) -> bool:
        """Whether a rendering has used `strftime_now`."""
        return self._environment.asked_for_date

    def render(self, messages: list[dict[str, Any]], tools: list[Any] | None = None, **variables: Any) -> str:
        """The text that the template makes of some messages.

        Args:
            messages: As of `apply_chat_template`: dictionaries, lists and texts.
            tools: The definitions of tools.
            variables: What else the template may read, such as `add_generation_prompt`.

        Raises:
            TemplateLimit: It takes too many steps or writes too much.
            Exception: Any error that the template raises.
        """
        self._environment.meter.reset(size_of(messages, 10**12) + size_of(tools or [], 10**12))
        return self._template.render(messages=messages, tools=tools, documents=None, **variables)


@functools.lru_cache(maxsize=64)
def _compiled(text: str) -> CodeType:
    """The code of a template, which knows nothing of the environment that it runs in."""
    environment = _Environment(datetime.now())
    environment.meter.reset(0)  # constants are computed while compiling
    return environment.compile(_Metering().visit(environment.parse(text)))


class _Meter:
    """Counts what a template does."""

    def reset(self, characters: int) -> None:
        """Begin a rendering of texts of so many characters."""
        more = PER_CHARACTER * characters
        self.most = MOST_CHARACTERS + more
        self._characters_left = self.most
        self._most_steps = MOST_STEPS + more
        self._steps_left = self._most_steps
        self._checks = 0
        seconds = SECONDS * self._most_steps / MOST_STEPS
        self._deadline = time.thread_time() + seconds

    def step(self, size: int = 0) -> None:
        """Count a step that makes something of a size.

        Raises:
            TemplateLimit: The size is larger than anything may be, or the step is one too many.
        """
        if size > self.most:
            raise TemplateLimit(f"it writes more than {self.most:,} characters")
        self._steps_left -= 1 + size // 64
        if self._steps_left < 0:
            raise TemplateLimit(f"it takes more than {self._most_steps:,} steps")
        self._checks += 1
        if self._checks % 16 == 0 and time.thread_time() > self._deadline:
            raise TemplateLimit("it takes too long")

    def write(self, size: int) -> None:
        """Count characters that are written, to a macro's own text or the whole one."""
        self.step(size)
        self._characters_left -= size
        if self._characters_left < 0:
            raise TemplateLimit(f"it writes more than {self.most:,} characters")

    def made(self, value: Any) -> Any:
        """Count a value and return it."""
        if isinstance(value, str | bytes | list | tuple | dict):
            self.step(len(value))
        else:
            self.step()
        return value


class _Environment(ImmutableSandboxedEnvironment):
    """The environment of transformers' chat templates, with a meter."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, now: datetime) -> None:
        # The function is private, but only it knows what chat templates may use.
        theirs = chat_template_utils._compile_jinja_template("").environment
        super().__init__(
            trim_blocks=theirs.trim_blocks,
            lstrip_blocks=theirs.lstrip_blocks,
            extensions=[type(extension) for extension in theirs.extensions.values()],
        )
        self.meter = _Meter()
        self.asked_for_date = False
        self._now = now
        # `_Metering` puts calls of these into a template: `tick` into each loop and macro, with the number of
        # characters that its body writes of its own, and `counted` around a loop's condition and a slice.
        self.tick = self.meter.write
        self.counted = self.meter.made
        self.filters = {name: self._metered(name, function) for name, function in theirs.filters.items()}
        self.filters["random"] = _refuse_chance
        self.tests.update(theirs.tests)
        self.globals.update(theirs.globals)
        self.globals["strftime_now"] = self._strftime
        self.globals["lipsum"] = _refuse_chance

    def compared(self, value: Any) -> Any:
        """The left side of a comparison. A list counts with all that it holds, also what it holds twice."""
        if isinstance(value, list | tuple | dict):
            self.meter.step(size_of(value, self.meter.most))
        else:
            self.meter.step()
        return value

    def written(self, value: Any) -> Any:
        """A value that is about to be written."""
        self.meter.write(size_of(value, self.meter.most))
        return value

    def joined(self, *values: Any) -> str:
        """Jinja's operator ~."""
        sizes = [size_of(value, self.meter.most) for value in values]
        self.meter.step(sum(sizes))
        return "".join(map(str, values))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        size = size_of_operation(self.meter.most, operator, left, right)
        self.meter.step(size)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        # The parameters are named as in Jinja: a template may use any other name for its keyword arguments.
        meter = __self.meter
        if isinstance(__obj, Macro):
            meter.step()
        else:
            size = size_of_call(meter.most, __obj, args, kwargs)
            meter.step(size)
        result = super().call(__context, __obj, *args, **kwargs)
        return meter.made(result)

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that is counted."""
        gets_context = hasattr(function, "jinja_pass_arg")

        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            value_and_arguments = args[1:] if gets_context else args
            size = size_of_filter(self.meter.most, name, value_and_arguments, kwargs)
            self.meter.step(size)
            result = function(*args, **kwargs)
            return self.meter.made(result)

        return metered

    def _strftime(self, form: str) -> str:
        self.asked_for_date = True
        return self._now.strftime(form)


class _Metering(NodeTransformer):
    """Puts the meter into a parsed template. What is rendered stays the same."""

    def visit_For(self, node: Any) -> nodes.Node:  # noqa: N802
        if node.test is not None:
            node.test = _call("counted", [node.test], node)
        return self._count_body(node)

    def visit_Output(self, node: Any) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        for place, child in enumerate(node.nodes):
            if not isinstance(child, nodes.TemplateData | nodes.Const):
                node.nodes[place] = _call("written", [child], child)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _call("counted", [node], node)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.expr, nodes.Const):
            node.expr = _call("compared", [node.expr], node)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("joined", node.nodes, node)

    def _count_body(self, node: Any) -> nodes.Node:
        length = sum(map(_literal_length, node.body))
        self.generic_visit(node)
        tick = _call("tick", [nodes.Const(length, lineno=node.lineno)], node)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node

    visit_Macro = visit_CallBlock = _count_body  # noqa: N815


def _call(method: str, arguments: list[nodes.Expr], at: nodes.Node) -> nodes.Call:
    """A call of one of the environment's methods."""
    function = nodes.EnvironmentAttribute(method, lineno=at.lineno)
    return nodes.Call(function, arguments, [], None, None, lineno=at.lineno)


def _literal_length(node: nodes.Node) -> int:
    """The characters of a template's own that a node writes, without bodies that have a tick of their own."""
    if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock):
        return 0
    if isinstance(node, nodes.TemplateData):
        return len(node.data)
    if isinstance(node, nodes.Const) and isinstance(node.value, str):
        return len(node.value)
    return sum(map(_literal_length, node.iter_child_nodes()))


def _refuse_chance(*_: Any, **__: Any) -> None:
    raise TemplateLimit("it writes something else each time (random)")
