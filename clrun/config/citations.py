"""BibTeX of clrun and of the papers of its strategies (`clrun --cite strategy=si`).

It is from files alone: conf/references.bib, the field `papers` of conf/strategy/*.yaml, and CITATION.cff.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clrun.config.catalog import Catalog, StrategyOption, parse
from clrun.system.errors import UsageError
from clrun.system.paths import CONF

BIBLIOGRAPHY = "references.bib"
CITATION = CONF.parent / "CITATION.cff"  # beside conf/, in a checkout and in a wheel

# An entry begins with @type{key, and ends with the first brace that begins a line.
ENTRY = re.compile(r"^@\w+\{\s*([^\s,]+)\s*,.*?^\}", re.MULTILINE | re.DOTALL)


def citations(words: Sequence[str], catalog: Catalog, folders: Sequence[Path] = (CONF,)) -> str:
    """Return BibTeX: clrun's own entry, and those of the papers of the strategies that the words name, such as
    strategy=si,ewc or si. folders: the conf folders whose references.bib are read.

    Raise UsageError for a word that names no strategy, and for a strategy without papers.
    """
    papers = entries(folders)
    strategies = list(dict.fromkeys(name for word in words for name in strategies_of(word, catalog)))
    cited: dict[str, list[str]] = {}  # key -> the strategies of the paper
    for name in strategies:
        for key in keys_of(name, catalog, papers):
            cited.setdefault(key, []).append(name)
    texts = [f"% {', '.join(names)}\n{papers[key]}" for key, names in cited.items()]
    return "\n\n".join([f"% clrun\n{own_entry(parse(CITATION))}", *texts])


def strategies_of(word: str, catalog: Catalog) -> Iterator[str]:
    """Yield the names of the strategies in a word such as strategy=si,ewc or si. Raise UsageError."""
    key, equals, names = word.rpartition("=")
    if equals and key != "strategy":
        raise UsageError(f"--cite {word}: papers are those of strategies; type clrun --cite strategy=NAME.")
    there = catalog.options["strategy"]
    for name in names.split(","):
        if name not in there:
            near = difflib.get_close_matches(name, list(there), 1)
            advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(there)}."
            raise UsageError(f"--cite {word}: there is no strategy {name or 'of that name'}; {advice}")
        yield name


def keys_of(name: str, catalog: Catalog, papers: Mapping[str, str]) -> list[str]:
    """Return the keys of the papers of a strategy. Raise UsageError where its yaml names none, or one that no
    references.bib has."""
    option = catalog.options["strategy"][name]
    assert isinstance(option, StrategyOption)
    if not option.papers:
        raise UsageError(
            f"--cite strategy={name}: its yaml names no paper; write papers: [KEY] there, and the entry KEY into "
            f"{BIBLIOGRAPHY} in the folder of --config-dir."
        )
    missing = [key for key in option.papers if key not in papers]
    if missing:
        raise UsageError(
            f"--cite strategy={name}: no {BIBLIOGRAPHY} has an entry {missing[0]}, which its yaml names; write it "
            "there, with its closing brace on a line of its own."
        )
    return option.papers


def entries(folders: Sequence[Path]) -> dict[str, str]:
    """Return the text of every entry by its key, from references.bib of conf folders; a later one counts. Raise
    UsageError for a file that cannot be read."""
    found: dict[str, str] = {}
    for path in (folder / BIBLIOGRAPHY for folder in folders):
        if path.is_file():
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise UsageError(f"{path} cannot be read as text: {error}.") from None
            found |= {match[1]: match[0] for match in ENTRY.finditer(text)}
    return found


def own_entry(citation: Mapping[str, Any]) -> str:
    """Return clrun's entry, from what CITATION.cff states (citation-file-format.github.io, version 1.2.0)."""
    fields = {
        "author": " and ".join(map(author, citation["authors"])),
        "title": f"{{{citation['title']}}}",
        "year": str(citation["date-released"])[:4],
        "note": f"Version {citation['version']}",
        **{name: citation[name] for name in ("doi", "url") if name in citation},
    }
    lines = [f"  {name:<9} = {{{value}}}," for name, value in fields.items()]
    return "\n".join(["@misc{clrun,", *lines, "}"])


def author(person: Mapping[str, str]) -> str:
    """Return an author as BibTeX reads one: 'Family, Given', or in braces a name that has no parts."""
    if "family-names" in person:
        return f"{person['family-names']}, {person.get('given-names', '')}".removesuffix(", ")
    return f"{{{person['name']}}}"
