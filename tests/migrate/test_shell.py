"""Scripts are taken apart as bash takes them apart; what it would have to run for that is left as it is."""

import os
import shutil
import subprocess

import pytest

from lightning_vlm.errors import UserError
from lightning_vlm.migrate.shell import read_script
from lightning_vlm.migrate.shell_words import simple_commands
from lightning_vlm.migrate.unsaid import Unsaid

SCRIPTS = {
    "quotes": """swift sft --system 'it is "so"' --name "a \\"b\\" c" --x a'b'"c" --empty "" --slash a\\ b""",
    "continued": "swift sft \\\n  --a 1 \\\n  --b 2 # said\n",
    "variables": 'A=one; B="two words"; swift sft --a $A --b "$B" --c $B --d ${A}s --e "${A}-$B"',
    "defaults": "A=1\nswift sft --a ${A:-5} --b ${NONE:-5} --c ${NONE-5} --d ${OTHER:=7} --e $OTHER",
    "sums": "G=128; B=4\nN=$((G / (B * 8)))\nswift sft --n $N --m $(( 80*28*28 )) --k $((7/2)) --j $((-7/2))",
    "expr": "n=8\nswift sft --n $(expr 16 / $n) --m `expr 3 \\* 4`",
    "array": "ARGS=(\n  --a 1   # first\n  --b 'two words'\n)\nARGS+=(--c 3)\nswift sft \"${ARGS[@]}\" --d 4",
    "text of options": 'lr=1e-4\nargs="\n  --lr ${lr} \\\n  --sum $((2*3))"\nswift sft ${args}',
    "in a condition": 'if [ -d . ]; then\n  A=1\n  swift sft --a "$A" 2>&1 | cat\nfi',
    "in a function": "go() {\n  local a=$1\n  swift sft --b 2\n}\ngo 1",
    "evaluated": "cmd='swift sft --a 1'\neval $cmd",
    "redirected": "swift sft --a 1 2>/dev/null --b 2 < /dev/null",
    "a text behind": "cat > /dev/null <<EOF\nit's \"\nEOF\nswift sft --a 1",
    "added": "A=1\nA+=2\nexport B=3\nswift sft --a $A --b $B",
    "before it": "X=1 Y=2 swift sft --a 1 && true",
    "chained": "cd . && swift sft --a 1 ; true",
    "windows": "swift sft --a 1\r\n".replace("\r", ""),
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize("name", SCRIPTS)
def test_words_are_those_that_bash_gives(tmp_path, name):
    """A program of that name writes what bash gives it."""
    program = tmp_path / "swift"
    program.write_text('#!/bin/bash\nprintf "%s\\0" "$@" > "$WORDS"\n')
    program.chmod(0o755)
    path = tmp_path / "run.sh"
    path.write_text(SCRIPTS[name])
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WORDS": str(tmp_path / "words")}
    subprocess.run(["bash", str(path)], env=environment, check=True, timeout=20, cwd=tmp_path)
    expected = (tmp_path / "words").read_text().split("\0")[:-1]
    found = [
        command.words for command in simple_commands(SCRIPTS[name], "run.sh") if "swift" in command.words
    ]
    (words,) = found
    assert words[words.index("swift") + 1 :] == expected


def test_lines_end_as_on_windows():
    command = read_script("swift sft \\\r\n  --model a \\\r\n  --dataset b\r\n", "a.sh")
    assert command.given == {"model": "a", "dataset": "b"}


@pytest.mark.parametrize(
    "word", ["$MODEL", "out/${RUN}", "$1", "$(date +%F)", "`date`", "${A//x/y}", "$((N / 2))"]
)
def test_what_a_script_does_not_say_is_marked(word):
    """Nothing of it is run."""
    given = read_script(f"swift sft --model {word} --dataset b", "a.sh").given
    assert given == {"model": word, "dataset": "b"}
    assert isinstance(given["model"], Unsaid)
    assert not isinstance(given["dataset"], Unsaid)


def test_comments_inside_of_a_command():
    """A shell ends the command there, which is never meant, so that it is said, and read over."""
    script = "swift sft \\\n  --model a \\\n  # --dataset old's \\\n  --dataset b \\ \n  --max_length 5\n"
    command = read_script(script, "a.sh")
    assert command.given == {"model": "a", "dataset": "b", "max_length": "5"}
    assert [remark.partition(" ends")[0] for remark in command.launch.remarks] == ["line 3", "line 4"]


@pytest.mark.parametrize(
    ("script", "tool", "given"),
    [
        ("python prepare.py --a 1\nswift sft --model b", "ms-swift", {"model": "b"}),
        ("swift sft --model b\nswift export --adapters c", "ms-swift", {"model": "b"}),
        ("srun -p x torchrun --nproc_per_node 4 /opt/bin/swift sft --model b", "ms-swift", {"model": "b"}),
        ("nohup llamafactory-cli train --stage sft > log 2>&1 &", "llama-factory", {"stage": "sft"}),
        ("deepspeed --num_gpus 2 a/train.py --learning_rate 1", None, {"learning_rate": "1"}),
        ("python eval.py --x 1\npython go.py --learning_rate 1", None, {"learning_rate": "1"}),
        ("echo swift sft --model a\nswift sft --model b", "ms-swift", {"model": "b"}),
        ("file=go.py\npython $file --max_steps 1", None, {"max_steps": "1"}),
    ],
)
def test_which_command_is_meant(script, tool, given):
    command = read_script(script, "a.sh")
    assert (command.tool, command.given) == (tool, given)
    if "prepare" in script:
        assert command.launch.remarks == ("the command in line 2 was read, and not the one in line 1",)
    if "srun" in script:
        assert command.launch.devices == 4


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("swift sft --model a\n\nswift sft --model b", "found 2 training commands, in lines 1, 3"),
        ("swift infer --adapters a", "found swift infer and no training command"),
        ("echo hello", "found no training command"),
        ("swift sft --a 'b", "line 1: found a ' that doesn't end"),
        ('swift sft \\\n --a "b', "line 2: found a \" that doesn't end"),
        ("A=(1 2\nswift sft", "line 1: found a ( that doesn't end"),
        ("swift sft --a ${B", "line 1: found a { that doesn't end"),
        ("A=" + "a" * 60_000 + "\nswift sft --a $A$A", "a word of more than 100,000"),
        ("A='" + "a " * 40_000 + "'\nswift sft" + " $A" * 100, "more than 5,000,000"),
        ("swift sft --a " + "${A:-" * 50 + "}" * 50, "more than 20 brackets"),
        ("axolotl train a.yml", "a command of Axolotl, whose configs aren't read"),
        ("megatron sft --model a", "a command of Megatron-SWIFT"),
    ],
)
def test_scripts_that_cannot_be_read(script, expected):
    with pytest.raises(UserError) as error:
        read_script(script, "a.sh")
    assert expected in str(error.value)
