"""Every fenced block of every page runs; `tests/support/pages.py` says how."""

import re

import pytest

from tests.support import page_project
from tests.support.pages import OWN_TESTS, ROOT, blocks, pages, unmarked_directives

RUN_HERE = [page for page in pages() if page not in OWN_TESTS and blocks(page)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", RUN_HERE)
def test_page(page, tmp_path, monkeypatch, capsys, model_folder):
    from tests.support.page_runs import Page

    page_project.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("WANDB_MODE", "offline")
    Page(page, tmp_path, monkeypatch, capsys, model_folder).run()


@pytest.mark.parametrize("page", pages())
def test_each_comment_for_tests_stands_before_a_block(page):
    assert unmarked_directives((ROOT / page).read_text("utf-8")) == []


@pytest.mark.parametrize(("page", "test"), OWN_TESTS.items())
def test_a_page_with_a_test_of_its_own_is_read_by_it(page, test):
    assert (ROOT / page).is_file()
    assert re.search(re.escape(page.rpartition("/")[2]), (ROOT / test).read_text("utf-8"))
