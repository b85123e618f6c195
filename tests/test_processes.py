"""A small piece of `python -m tools.reliability.processes`, whose table is in RELIABILITY.md."""

from tools.reliability import processes


def test_a_process_that_dies_ends_the_others_with_a_message(tmp_path):
    outcome = processes.forked(tmp_path, "SIGKILL")
    assert outcome.codes == [2, -9], outcome.text
    assert outcome.seconds < 60
    assert "another process of the run ended first" in processes.message(outcome.text)
    assert "--ckpt_path last goes on from the newest checkpoint" in outcome.text
