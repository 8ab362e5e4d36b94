"""report.md shows what runs say as it is, whatever Markdown and HTML it holds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from nas_transfer.report.collect import find_runs
from nas_transfer.report.content import make_report
from nas_transfer.report.page import write_report
from nas_transfer.runs import Ancestor
from tests.report.run_folders import write, write_run

HOSTILE = [
    "<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "[here](javascript:alert)", "![p](https://x.org/p.png)",
    "a|b", "`code`", "``two``", "*bold* __bold__ ~~gone~~ _soft_", "line\n\n# title", "line\n| a | b |", "&lt;b&gt;",
    "back\\slash", "<https://x.org>", "https://x.org www.x.org",
]  # fmt: skip


def tokens(markdown: str) -> Iterator[Token]:
    """What a renderer of Markdown finds, blocks and what is in them."""
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown):
        yield token
        yield from token.children or ()


def in_markdown(folder: Path, name: str) -> str:
    """The Markdown of a report on a net, a supernet and a broken run that say `name` wherever they can."""
    settings = {"data.root": f"data/{name}", "supernet.name": name, "arch": name}
    parent = Ancestor(f"{name}/w.pt", "e" * 64, name, licence=name, stage=name)
    changes: dict[str, Any] = {"provenance": (parent,), "score_key": name, "metrics": {name: 0.5}}
    runs = folder / "runs/finetune/x"
    write_run(runs / name.replace("/", ""), "finetune", f"a_{name}", settings, **changes)
    write_run(runs / "all", "finetune", f"a_{name}", settings, **changes, arch=None)
    write(runs / "broken/run.json", json.dumps({"format": name}))
    own = folder / "report"
    _, markdown, _ = write_report(own, *make_report(*find_runs([str(folder / "runs")], own)))
    return markdown.read_text()


@pytest.mark.parametrize("name", HOSTILE)
def test_the_markdown_escapes_what_runs_say(tmp_path: Path, name: str) -> None:
    markdown = in_markdown(tmp_path / "hostile", name)
    found, plain = list(tokens(markdown)), list(tokens(in_markdown(tmp_path / "plain", "x")))
    for kind in ("html_inline", "html_block", "link_open", "image", "em_open", "strong_open", "s_open"):
        assert kind not in {token.type for token in found}
    for kind in ("heading_open", "table_open", "tr_open", "td_open", "bullet_list_open", "hr", "code_inline"):
        assert sum(token.type == kind for token in found) == sum(token.type == kind for token in plain), kind
    shown = "".join(token.content for token in found if token.type in ("text", "text_special", "code_inline"))
    assert shown.count(" ".join(name.split())) >= 8
    assert "://" not in markdown
