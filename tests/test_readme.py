"""Every README: its links, pictures and anchors lead somewhere, its commands are understood, its Python runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from readme_commands import judge

ROOT = Path(__file__).resolve().parents[1]
FRONT = ROOT / "README.md"
MOST_WORDS = 1100
LARGEST_PICTURE = 1_500_000  # bytes; a phone loads them all


@cache
def readmes() -> tuple[Path, ...]:
    """All that the repository holds; checkpoints/ also holds runs, which are the user's."""
    found = [FRONT, ROOT / "checkpoints/README.md", ROOT / "checkpoints/tiny-arithmetic/README.md", *guides()]
    return (*found, *sorted(set((ROOT / "tests").rglob("README.md")) - set(found)))


@cache
def guides() -> tuple[Path, ...]:
    """Of the folders that a person would open; notes beside recorded files are none."""
    found = [ROOT / "tests/README.md", ROOT / "tests/benchmarks/README.md"]
    for folder in ("rlspec", "envs", "recipes"):
        found += (path for path in sorted((ROOT / folder).rglob("README.md")) if "build" not in path.parts)
    return tuple(found)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@dataclass(frozen=True)
class Page:
    """What one README consists of."""

    path: Path
    links: tuple[str, ...]
    pictures: tuple[tuple[str, str], ...]  # (source, alternative text)
    headings: tuple[tuple[int, str], ...]  # (level, text)
    blocks: tuple[tuple[str, str], ...]  # (language, text)
    spans: tuple[str, ...]  # inline code


@cache
def page(path: Path) -> Page:
    tokens = list(flat(MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))))
    html = "".join(token.content for token in tokens if token.type in ("html_block", "html_inline"))
    tags = [dict(re.findall(r'(\w+)="([^"]*)"', tag)) for tag in re.findall(r"<img\b[^>]*>", html)]
    return Page(
        path,
        links=tuple(str(token.attrs["href"]) for token in tokens if token.type == "link_open")
        + tuple(re.findall(r'href="([^"]*)"', html)),
        pictures=tuple((str(token.attrs["src"]), token.content) for token in tokens if token.type == "image")
        + tuple((tag["src"], tag.get("alt", "")) for tag in tags),
        headings=tuple(
            (int(opening.tag[1]), heading_text(inline))
            for opening, inline in zip(tokens, tokens[1:], strict=False)
            if opening.type == "heading_open"
        ),
        blocks=tuple((token.info, token.content) for token in tokens if token.type == "fence"),
        spans=tuple(token.content for token in tokens if token.type == "code_inline"),
    )


def flat(tokens: list[Token]) -> Any:
    for token in tokens:
        yield token
        yield from flat(token.children or [])


def heading_text(inline: Token) -> str:
    return "".join(token.content for token in inline.children or [] if token.type in ("text", "code_inline"))


def anchors(path: Path) -> list[str]:
    """As GitHub makes them: lower case, punctuation gone, hyphens for blanks, a number from the second equal one on."""
    found: list[str] = []
    for _, text in page(path).headings:
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return found


def is_local(link: str) -> bool:
    return "://" not in link and not link.startswith("mailto:")


def target(path: Path, link: str) -> Path:
    return (path.parent / link.partition("#")[0]).resolve() if not link.startswith("#") else path


@pytest.mark.parametrize("path", readmes(), ids=name)
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(path: Path) -> None:
    for link in filter(is_local, page(path).links):
        there = target(path, link)
        assert there.exists() and there.is_relative_to(ROOT), f"{link}: no such file"
        if "#" in link:
            assert link.partition("#")[2] in anchors(there), f"{link}: {name(there)} has {anchors(there)}"


def test_every_readme_can_be_reached_from_the_front_page() -> None:
    seen, waiting = set(), [FRONT]
    while waiting:
        path = waiting.pop()
        seen.add(path)
        near = {target(path, link) for link in page(path).links if is_local(link)}
        near |= {folder / "README.md" for folder in near if folder.is_dir()}
        waiting += [other for other in near if other in readmes() and other not in seen]
    assert not set(guides()) - seen


@pytest.mark.parametrize("path", readmes(), ids=name)
def test_paths_in_code_spans_exist(path: Path) -> None:
    for span in page(path).spans:
        for word in span.split():
            if re.fullmatch(r"(rlspec|tests|recipes|envs)/[\w./-]+", word) and not word.endswith("-v0"):
                assert (ROOT / word).exists(), f"{word}: no such file"


@pytest.mark.parametrize("path", readmes(), ids=name)
def test_pictures_are_small_files_that_say_what_they_show(path: Path) -> None:
    for source, says in page(path).pictures:
        assert is_local(source), f"{source}: pictures come from the repository"
        file = target(path, source)
        assert 0 < file.stat().st_size <= LARGEST_PICTURE, f"{source}: {file.stat().st_size} bytes"
        assert len(says.split()) >= 4, f"{source}: an alternative text for those who cannot see it"


def test_the_front_page_is_short_and_has_pictures() -> None:
    assert len(FRONT.read_text(encoding="utf-8").split()) <= MOST_WORDS
    assert len(page(FRONT).pictures) >= 3


def test_what_a_wheel_says_leads_to_no_file_that_it_does_not_hold() -> None:
    shown = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["readme"]
    assert isinstance(shown, dict), "README.md links to the repository's files"
    assert not re.search(r"\]\(|<img|README\.md", shown["text"])


def test_no_picture_lies_around_unused() -> None:
    shown = {target(path, source) for path in readmes() for source, _ in page(path).pictures}
    lying = {
        path for path in (ROOT / "tests/benchmarks").rglob("*") if path.suffix in (".png", ".gif", ".svg", ".webp")
    }
    assert lying == shown


@pytest.mark.parametrize("path", guides(), ids=name)
def test_every_folders_readme_ends_with_what_to_touch(path: Path) -> None:
    level, last = [heading for heading in page(path).headings if heading[0] <= 2][-1]
    assert level == 2
    assert re.fullmatch(r"To add an? .+, touch these files", last)


# Commands


def commands(path: Path) -> list[str]:
    """Of code blocks without a language, and of code spans that are whole commands."""
    lines = [line for language, text in page(path).blocks if language in ("", "bash") for line in text.splitlines()]
    lines += [span for span in page(path).spans if re.match(r"(python -m rlspec|pytest |python tests/|rlspec )", span)]
    return [line for line in lines if line.strip() and not line.startswith("#") and not line.endswith(" ...")]


def words_of(command: str) -> list[str]:
    words = shlex.split(command, comments=True)
    return words[2:] if words[:2] == ["uv", "run"] else words


def ours(words: list[str]) -> list[str] | None:
    """The arguments of `rlspec`, if this is one of its commands."""
    if words[:1] == ["rlspec"]:
        return words[1:]
    if words[:2] == ["python", "-m"] and words[2].startswith("rlspec."):
        return [words[2].removeprefix("rlspec."), *words[3:]]
    return None


def test_every_command_of_ours_is_understood(tmp_path: Path) -> None:
    """Up to the first heavy import; until then all mistakes are found."""
    asked = {line: arguments for path in readmes() for line in commands(path) if (arguments := ours(words_of(line)))}
    assert len(asked) > 40
    verdicts = judge(list(asked.values()), tmp_path)
    wrong = {line: verdict for line, verdict in zip(asked, verdicts, strict=True) if not verdict.understood}
    assert not wrong, "\n".join(f"{line}: {verdict.output}" for line, verdict in wrong.items())


@pytest.mark.parametrize(
    "arguments",
    [["train", "recipe=grpo_math", "optim.lrr=1"], ["deploy", "robot=mujoko"], ["serve", "polcy=hold"], ["trian"]],
    ids=" ".join,
)
def test_a_command_with_a_mistake_is_not_understood(arguments: list[str], tmp_path: Path) -> None:
    (verdict,) = judge([arguments], tmp_path)
    assert not verdict.understood
    assert "Traceback" not in verdict.output


@pytest.mark.parametrize("path", readmes(), ids=name)
def test_other_commands_name_what_exists(path: Path) -> None:
    for line in commands(path):
        words = words_of(line)
        if ours(words) is None:
            CHECKS[words[0]](words)


def check_files(words: list[str]) -> None:
    for word in words[1:]:
        if "/" in word and not word.startswith("-"):
            assert (ROOT / word).exists(), word


def check_python(words: list[str]) -> None:
    check_files(words)
    usage = (ROOT / words[1]).read_text(encoding="utf-8")
    for word in words[2:]:
        key = word.partition("=")[0].lstrip("-")
        assert not re.match(r"--?[a-z]", word) or re.search(rf"\b{re.escape(key)}\b", usage), word
        assert "=" not in word or re.search(rf"\b{re.escape(key)}\b", usage), word


def check_install(words: list[str]) -> None:
    """pip install of a folder, of extras, of a package."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in words[words.index("install") + 1 :]:
        folder, _, names = word.partition("[")
        if folder.startswith("."):
            assert (ROOT / folder / "pyproject.toml").is_file(), word
            assert not names or set(names.rstrip("]").split(",")) <= set(extras), word


def check_sync(words: list[str]) -> None:
    """uv sync with extras."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = [after for before, after in zip(words, words[1:], strict=False) if before == "--extra"]
    assert words[:2] == ["uv", "sync"] and named and set(named) <= set(extras), words


def check_tool(words: list[str]) -> None:
    """A command of a package that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["dependency-groups"]["dev"], *sum(project["project"]["optional-dependencies"].values(), [])]
    assert words[0].partition("-")[0] in {re.split(r"[^\w-]", text)[0] for text in wanted}, words[0]


CHECKS = {
    "pytest": check_files,
    "python": check_python,
    "pip": check_install,
    "uv": check_sync,
    **dict.fromkeys(("ruff", "mypy", "lerobot-train", "lerobot-eval"), check_tool),
}


# Python

SNIPPETS_OF_THEIR_OWN = ROOT / "rlspec/optim/README.md"  # tests/optim/test_snippets.py
PYTHON = [
    (path, text)
    for path in readmes()
    if path != SNIPPETS_OF_THEIR_OWN
    for language, text in page(path).blocks
    if language == "python"
]


@pytest.mark.parametrize(("path", "text"), PYTHON, ids=[f"{name(path)}-{i}" for i, (path, _) in enumerate(PYTHON)])
def test_python_in_readmes_runs(path: Path, text: str) -> None:
    """In a process of its own: some of it registers names."""
    prepared = PREPARED if "model" in text else ""
    result = subprocess.run(
        [sys.executable, "-c", prepared + text], capture_output=True, text=True, check=False, timeout=240, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr


# What the reader has already: a model with gradients.
PREPARED = """
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
model = Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=8, vocab_size=64))
model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
model.requires_grad_(True)
model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
conv = torch.nn.Conv2d(3, 4, 3)
"""
