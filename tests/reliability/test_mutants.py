"""Small mistakes: which there are, that they fit in, and that forked processes report their calls."""

import os

from tools.reliability.mutant_tests import Journal
from tools.reliability.mutations import mutants_of

SOURCE = """
class Counter(dict):
    def __init__(self):
        super().__init__()
        self.count = 1

def pairs(one, other):
    assert len(one) > 0
    return list(zip(one, other, strict=True))
"""


def test_assertions_are_left_alone():
    names = [mutant.name for mutant in mutants_of(SOURCE)]
    assert names == [
        "Counter.__init__: super().__init__(): super().__init__() -> pass",
        "Counter.__init__: self.count = 1: 1 -> 2",
    ]


def test_a_method_may_lose_the_call_of_its_parent():
    made = {}
    exec(SOURCE, made)
    first, second = mutants_of(SOURCE)
    for mutant, count in ((first, 1), (second, 2)):
        made["Counter"].__init__.__code__ = mutant.code(SOURCE, "counter.py")
        assert made["Counter"]().count == count


def test_what_forked_processes_write_down_is_read():
    with Journal() as journal:
        journal.write("here", "f")
        child = os.fork()
        if child == 0:
            journal.write("there", "f")
            journal.write("there", "f")
            os._exit(0)
        os.waitpid(child, 0)
        assert journal.read() == [["here", "f"], ["there", "f"]]
