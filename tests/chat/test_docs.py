"""docs/chat.md and docs/serving.md are right; running this file prints the table of servers."""

import re
from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lightning_vlm.chat.terminal import COMMANDS
from lightning_vlm.export import servers
from lightning_vlm.published import families

DOCS = Path(__file__).parents[2] / "docs"
CHAT, SERVING = ((DOCS / name).read_text("utf-8") for name in ("chat.md", "serving.md"))


def lines_of_shell(text: str) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


def server_rows() -> list[str]:
    rows = []
    for family in families():
        name = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(family)
        if name is not None:
            found = (servers.vllm(name), servers.llama_cpp(name), servers.ollama(name))
            rows.append(f"| `{name}` | {' | '.join(one.state for one in found)} |")
    return sorted(set(rows))


def test_the_table_of_servers_is_the_code_s():
    assert re.findall(r"^\| `\w+` \|.*$", SERVING, re.MULTILINE) == server_rows()
    for source in (servers.VLLM_SOURCE, servers.LLAMA_SOURCE, servers.OLLAMA_SOURCE):
        assert f"| {source} |" in SERVING


def test_the_table_of_lines_is_the_terminal_s():
    rows = re.findall(r"^\| `(/.*?)` \| (.*) \|$", CHAT, re.MULTILINE)
    assert rows == [(one.usage, one.summary) for one in COMMANDS.values()]


@pytest.mark.parametrize("line", [line for line in lines_of_shell(SERVING) if "lightning-vlm" not in line])
def test_commands_of_servers_are_those_of_a_card(line):
    assert line in {*servers.vllm_commands(None, None, ()), *servers.llama_commands()}


if __name__ == "__main__":
    print("\n".join(server_rows()))
