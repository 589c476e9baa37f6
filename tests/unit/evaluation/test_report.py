import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

from multitoken.decoding.records import Chunk
from multitoken.evaluation.report import Headline, RaceEntry, headlines_of, write_report
from multitoken.evaluation.rows import Row
from multitoken.evaluation.statistics import Interval
from multitoken.models.generation import Generation

MakeRow = Callable[..., Row]
EVIL = "<script>alert('x')</script> & \"quoted\""


class Page(HTMLParser):
    """The tags, the attributes and the chunks of a page, as a browser reads them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.chunks: list[tuple[str, str | None]] = []
        self._tip: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._tip = dict(attrs).get("data-tip")

    def handle_data(self, data: str) -> None:
        if self._tip is not None:
            self.chunks.append((data, self._tip))
            self._tip = None


def generation(seconds: float, *pieces: tuple[str, int]) -> Generation:
    chunks = tuple(Chunk(0, (7,) * n, (0.875,) * n, text) for text, n in pieces)
    ids = tuple(i for chunk in chunks for i in chunk.token_ids)
    return Generation("".join(text for text, _ in pieces), ids, chunks, seconds)


def page(path: Path, make_row: MakeRow, **parts: object) -> str:
    rows = [make_row(), make_row(model="adapted", policy="exact", threshold=0.5, label="exact 0.5")]
    usual: dict = {"title": "A report", "rows": rows, "provenance": {"command": "multitoken demo"}}
    write_report(path, **(usual | parts))
    return path.read_text(encoding="utf-8")


def test_nothing_that_was_written_by_others_runs(make_row: MakeRow, tmp_path: Path) -> None:
    """Guards against a prompt or an answer that acts as markup: in text, in a tooltip, in a label, in the
    provenance."""
    race = [RaceEntry(EVIL, EVIL, generation(1.0, (EVIL, 2)))]
    rows = [make_row(label=EVIL, task=EVIL, model=EVIL)]
    html = page(
        tmp_path / "r.html", make_row, title=EVIL, summary=EVIL, rows=rows, race=race, provenance={EVIL: EVIL, "n": [EVIL]},
        headlines=[Headline(EVIL, EVIL, EVIL)],
    )  # fmt: skip
    read = Page(html)
    assert "script" not in read.tags
    assert not any(name.startswith("on") for name, _ in read.attributes)
    assert read.chunks[0][0] == EVIL
    assert "default-src 'none'" in html


def test_the_page_needs_nothing_else(make_row: MakeRow, tmp_path: Path) -> None:
    """Guards against a font, style or picture that must be fetched: reports are sent by mail and read offline."""
    (tmp_path / "p.png").write_bytes(b"\x89PNG picture")
    html = page(tmp_path / "r.html", make_row, picture=tmp_path / "p.png")
    assert 'src="data:image/png;base64,iVBORyBwaWN0dXJl"' in html
    assert not re.search(r"https?://|url\(|@import|<link", html)


def test_chunks_stand_in_their_lanes_with_their_tooltips(make_row: MakeRow, tmp_path: Path) -> None:
    """Guards against chunks that do not match the forward passes, lost spaces, and prompts mixed in one race."""
    race = [
        RaceEntry("count", "next token", generation(2.0, ("1", 1), (" 2", 1), ("", 1))),
        RaceEntry("count", "exact", generation(0.5, ("1", 1), (" 2", 2))),
        RaceEntry("repeat", "exact", generation(1.0, ("x", 1))),
    ]
    html = page(tmp_path / "r.html", make_row, race=race)
    assert Page(html).chunks == [
        ("1", "prefill: 1 token, confidence 87.5%"),
        (" 2", "step 1: 1 token, confidence 87.5%"),
        ("▫", "step 2: 1 token, confidence 87.5%"),
        ("1", "prefill: 1 token, confidence 87.5%"),
        (" 2", "step 1: 2 tokens, confidence 87.5%, 87.5%"),
        ("x", "prefill: 1 token, confidence 87.5%"),
    ]
    assert html.count('class="race"') == 2
    assert "2.00 tokens per step · 3 tokens in 2 forward passes · 0.50 s" in html
    assert "Replay 3.0 times slower than measured" in html
    assert "--share: 0.250; --last: 1.500" in html  # a quarter of the slowest lane's time, which is replayed in 6 s


def test_headlines_are_the_default_thresholds(make_row: MakeRow) -> None:
    """Guards against headlines picked for their result, and against ties or differences that are not mentioned."""
    adapted = {"model": "adapted", "k": 16}
    rows = [
        make_row(),
        make_row(policy="exact", threshold=0.3, label="exact 0.3", tokens_per_step=5.5, **adapted),
        make_row(policy="exact", threshold=0.5, label="exact 0.5", tokens_per_step=5.25, own_ties=2, speedup=3.2,
                 identical_to_own_next_token=1497, speedup_interval=Interval(3.1, 3.3), **adapted),
        make_row(policy="confadapt", threshold=0.95, label="confadapt 0.95", tokens_per_step=4.0, **adapted),
        make_row(policy="confadapt", threshold=0.6, label="confadapt 0.6", tokens_per_step=6.0, **adapted),
    ]  # fmt: skip
    assert headlines_of(rows) == [
        Headline("5.25", "tokens per step, exact 0.5", "3.20× the original's tokens per second (95%: 3.10 to 3.30)"),
        Headline(
            "1,497 of 1,500", "outputs identical to next-token decoding of the same weights", "2 tied, 1 different"
        ),
        Headline(
            "4.00", "tokens per step, confadapt 0.95", "1.00× the original's tokens per second (95%: 0.98 to 1.02)"
        ),
        Headline("95.0%", "correct answers, confadapt 0.95", "+0.0 points against the original (95%: −1.0 to +1.0)"),
    ]
    assert headlines_of([make_row()]) == headlines_of([]) == []


def test_each_task_has_its_table(make_row: MakeRow, tmp_path: Path) -> None:
    """Guards against rows of two tasks under one caption."""
    html = page(tmp_path / "r.html", make_row, rows=[make_row(), make_row(task="stories", prompts=60, accuracy=None)])
    assert html.count("<table>") == 2
    assert "sums, 1,500 prompts" in html
    assert "stories, 60 prompts" in html


def test_how_many_tokens_steps_write(make_row: MakeRow, tmp_path: Path) -> None:
    """Guards against shares of steps where shares of tokens are meant: 6 steps of one token and 2 steps of three tokens
    write 12 tokens."""
    rows = [make_row(), make_row(model="adapted", label="exact 0.5", steps_by_length=(6, 0, 2), tokens_per_step=1.5)]
    html = page(tmp_path / "r.html", make_row, rows=rows)
    assert html.count('class="bar"') == 1
    assert 'title="steps of 1 token: 75.0% of the steps, 50.0% of the tokens">1</i>' in html
    assert 'title="steps of 3 tokens: 25.0% of the steps, 50.0% of the tokens">3</i>' in html


def test_length_and_repetition_stand_beside_the_original_s(make_row: MakeRow, tmp_path: Path) -> None:
    rows = [
        make_row(tokens=3000, prompts=10, original_tokens=2000, repetition=0.25, original_repetition=0.3, label="c"),
    ]
    assert re.findall(r"<td>([^<]+)</td>", page(tmp_path / "r.html", make_row, rows=rows))[-2:] == [
        "300.0 (+50.0%)",
        "25.0% (−5.0)",
    ]


def test_text_that_differs_from_the_first_answer_is_marked(make_row: MakeRow, tmp_path: Path) -> None:
    """Guards against marking equal text because it is divided into other chunks."""
    first = Generation(
        "abc", (1, 2, 3), (Chunk(0, (1,), (1.0,), "a"), Chunk(0, (2,), (1.0,), "b"), Chunk(0, (3,), (1.0,), "c")), 1.0
    )
    same = Generation("abc", (1, 2, 3), (Chunk(0, (1,), (1.0,), "a"), Chunk(0, (2, 3), (0.9, 0.5), "bc")), 1.0)
    other = Generation("abd", (1, 2, 4), (Chunk(0, (1, 2), (1.0, 0.9), "ab"), Chunk(0, (4,), (0.9,), "d")), 1.0)
    race = [RaceEntry("p", name, answer) for name, answer in {"first": first, "same": same, "other": other}.items()]
    html = page(tmp_path / "r.html", make_row, race=race)
    assert re.findall(r'class="chunk c\d other"[^>]*>([^<]*)<', html) == ["d"]
    assert html.count("differs from token 3 on") == 1
    assert "--sure: 0.50" in html
