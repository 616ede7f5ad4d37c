"""clrun --cite: every strategy has papers, every entry of references.bib is BibTeX, and mistakes are refused."""

import re
import subprocess
import sys

import pytest

from clrun import __version__
from clrun.config.catalog import StrategyOption, read, with_folder
from clrun.config.citations import BIBLIOGRAPHY, citations, entries, own_entry
from clrun.system.errors import UsageError
from clrun.system.paths import CONF

# What each type of entry must have (btxdoc.pdf, section 3.1); a preprint says where it is.
REQUIRED = {
    "article": {"author", "title", "journal", "year"},
    "inproceedings": {"author", "title", "booktitle", "year"},
    "misc": {"author", "title", "year", "howpublished"},
}
FIELD = re.compile(r"^  (\w+) += \{(.*)\},$")


def fields(entry: str) -> tuple[str, dict[str, str]]:
    """The type and the fields of an entry, one a line; an assertion fails where a line is none."""
    head, *lines, end = entry.splitlines()
    matches = [FIELD.match(line) for line in lines]
    assert end == "}" and all(matches), entry
    found = dict(match.groups() for match in matches if match)
    assert len(found) == len(lines), f"a field twice: {entry}"
    return re.fullmatch(r"@(\w+)\{[\w-]+,", head)[1], found


def test_every_entry_is_whole():
    papers = entries([CONF])
    text = (CONF / BIBLIOGRAPHY).read_text(encoding="utf-8")
    assert len(papers) == len(re.findall("^@", text, re.M)) >= 30  # none swallows the next, no key comes twice
    for key, entry in papers.items():
        kind, found = fields(entry)
        assert REQUIRED[kind] <= found.keys(), key
        assert all(value.count("{") == value.count("}") for value in found.values()), key
        assert found["year"] in key and re.fullmatch(r"(19|20)\d\d", found["year"]), key
        assert not re.search(r"(?<!\\)[&%$#_]", found["title"] + found["author"]), f"not escaped: {key}"
        assert re.fullmatch(r"\d{4}\.\d{4,5}", found.get("eprint", "1234.5678")), key


def test_every_strategy_names_papers_that_there_are_and_no_paper_is_left_over():
    papers, named = entries([CONF]), set()
    for name, option in read().options["strategy"].items():
        assert isinstance(option, StrategyOption) and option.papers, name
        years = set(re.findall(r"(?:19|20)\d\d", option.about))
        assert not years or years & {fields(papers[key])[1]["year"] for key in option.papers}, name
        named |= set(option.papers)
    assert named == papers.keys()


def test_several_strategies_share_an_entry(clrun):
    code, out, _ = clrun("--cite", "strategy=der,derpp", "si")
    assert code == 0
    assert re.findall(r"^@\w+\{(.*),$", out, re.M) == ["clrun", "buzzega2020dark", "zenke2017continual"]
    assert "% der, derpp\n@inproceedings{buzzega2020dark," in out and "eprint    = {1703.04200}," in out


def test_clruns_entry_is_that_of_its_citation_file():
    own = citations([], read())
    assert own.startswith("% clrun\n@misc{clrun,\n  author    = {{the clrun authors}},") and own.endswith("}")
    assert f"{{Version {__version__}}}" in own
    people = [{"family-names": "Gödel", "given-names": "Kurt"}, {"name": "Lab"}]
    entry = own_entry({"authors": people, "title": "T", "date-released": "2026-01-01", "version": 1, "doi": "10.1/2"})
    assert "{Gödel, Kurt and {Lab}}" in entry and "{10.1/2}" in entry


@pytest.mark.parametrize(
    "word, reason",
    [
        ("strategy=sii", "did you mean si?"),
        ("strategy=qqq", "there are agem,"),
        ("strategy=si,", "no strategy of that name"),
        ("lambda=3", "type clrun --cite strategy=NAME"),
    ],
)
def test_a_wrong_word_is_refused_in_a_sentence(clrun, word, reason):
    code, out, error = clrun("--cite", word)
    assert (code, out) == (2, "") and reason in error and error.count("\n") == 1


def test_a_strategy_of_the_users_has_entries_beside_its_yaml(tmp_path):
    (tmp_path / "strategy").mkdir()
    text = "name: mine\nabout: mine\n_target_: clrun.strategies.finetune.Finetune\n"
    (tmp_path / "strategy" / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match="names no paper; write papers:"):
        citations(["mine"], with_folder(tmp_path), [CONF, tmp_path])
    read.cache_clear()
    (tmp_path / "strategy" / "mine.yaml").write_text(text + "papers: [me2026]\n")
    with pytest.raises(UsageError, match="has an entry me2026"):
        citations(["mine"], with_folder(tmp_path), [CONF, tmp_path])
    (tmp_path / BIBLIOGRAPHY).write_text("@misc{me2026,\n  title = {T},\n}\n")
    assert citations(["mine"], with_folder(tmp_path), [CONF, tmp_path]).endswith(
        "% mine\n@misc{me2026,\n  title = {T},\n}"
    )


def test_it_needs_no_torch():
    code = (
        "import sys; from clrun.commands.run import command; command(['--cite', 'si']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n") and "@inproceedings{zenke2017continual," in done.stdout
