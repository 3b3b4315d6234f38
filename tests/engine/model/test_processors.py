"""Logits processors of a plugin that is really installed: a distribution on the path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from app.engine.drawing import Drawer
from app.engine.sampling import SamplingParams, Structured
from app.engine.sequence import Draw, Sequence
from app.engine.tokenizer import Tokenizer
from app.errors import InputError

VOCAB = 49152
PLUGIN = '''
class Only:
    """Allows the tokens that its options list, and none of the last output again."""

    def __init__(self, options, tokenizer):
        if not isinstance(options, list):
            raise ValueError("options must be a list of token ids")
        self.allowed = options

    def __call__(self, scores, prompt, output):
        keep = scores[self.allowed].clone()
        scores.fill_(float("-inf"))
        scores[self.allowed] = keep
        if output:
            scores[output[-1]] = float("-inf")


class Broken:
    def __init__(self, options, tokenizer):
        pass

    def __call__(self, scores, prompt, output):
        raise RuntimeError("out of ideas")
'''


@pytest.fixture
def drawer(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drawer:
    info = tmp_path / "everlog_only-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: everlog-only\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[everlog.logits_processors]\nonly = everlog_only:Only\nbroken = everlog_only:Broken\n"
        "missing = everlog_no_such:Thing\n"
    )
    (tmp_path / "everlog_only.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    return Drawer(tokenizer, VOCAB)


def asked(name: str, processors: dict[str, Any], output: list[int], **params: Any) -> Sequence:
    return Sequence(name, [1], SamplingParams(processors=processors, **params), output=output)


def test_a_plugin_changes_what_is_drawn_and_nothing_beside_it(drawer: Drawer) -> None:
    sequences = [
        asked("a", {"only": [40, 50]}, []),
        asked("b", {"only": [40, 50]}, [40], temperature=1.0, seed=1, logprobs=1),
        asked("c", {"broken": None}, []),
        asked("d", {"only": [7]}, [7]),
        asked("e", {}, []),
        asked("f", {"only": [1, 2]}, [], structured=Structured(regex="[0-9]")),
    ]
    for sequence in sequences:
        drawer.prepare(sequence)
    logits = torch.zeros(6, VOCAB)
    logits[:, 40] = 1.0
    draws = drawer.draw(logits, sequences)
    assert draws[0] == Draw([40])
    assert draws[1].tokens == [50]
    assert draws[1].logprobs is not None
    assert [token for token, _ in draws[1].logprobs[0].top] == [40]  # of the model itself
    assert draws[2] == Draw([], error="logits processor broken: RuntimeError: out of ideas")
    assert draws[3].error == draws[5].error == "its logits processors leave no token to choose"
    assert draws[4] == Draw([40])


@pytest.mark.parametrize(
    ("processors", "field", "message"),
    [
        ({"other": 1}, "params.processors.other", "is not installed here; there is: broken, "),
        ({"only": 5}, "params.processors.only", "options must be a list of token ids"),
        ({"missing": 5}, "params.processors.missing", "No module named"),
    ],
)
def test_a_plugin_that_is_not_to_be_had_is_named(
    drawer: Drawer, processors: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        drawer.prepare(asked("a", processors, []))
    assert caught.value.field == field
    assert message in caught.value.message
