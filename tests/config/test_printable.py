"""Text of others does not steer a terminal."""

from __future__ import annotations

import pytest

from hpc_llm.config import verbs
from hpc_llm.config.errors import InputError
from hpc_llm.config.printable import printable

STEERING = {
    "writes the clipboard": ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
    "clears the screen": ("\x1b[2J", "\\x1b[2J"),
    "in one byte": ("\x9b2J\x9d0;t\x9c", "\\x9b2J\\x9d0;t\\x9c"),
    "writes over the line": ("fine\rgone\x08", "fine\\rgone\\x08"),
    "reads backwards": ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
    "is no character": ("\udcff", "\\udcff"),
}


@pytest.mark.parametrize(("text", "shown"), STEERING.values(), ids=STEERING)
def test_what_steers_a_terminal_is_shown_by_every_verb_and_not_sent(
    capsys: pytest.CaptureFixture[str], text: str, shown: str
) -> None:
    def command(words: list[str]) -> int:
        print("run", *words)
        raise InputError(f"{words[0]}: is no run")

    assert verbs.run("status", command, [text], hydra=False) == 2
    assert capsys.readouterr() == (f"run {shown}\n", f"status: {shown}: is no run\n")


@pytest.mark.parametrize("text", ["a\tb\nc\r\n", "größer × 日本語 नमस्ते", "naïve 👩\u200d💻"])
def test_text_of_all_languages_stays(text: str) -> None:
    assert printable(text) == text
