"""Reward functions and prompts of one's own, as TRL takes them; and what they do to a model."""

from __future__ import annotations

import importlib.metadata
import json
import os
import textwrap
from pathlib import Path
from typing import Any

import pytest

from loomos.errors import InvalidData, InvalidInput
from loomos.manifest import JobManifest, RewardFunction, TrainingSpec
from loomos.rl.language.dpo import conversational_pair
from loomos.rl.language.prompts import PromptTask, columns
from loomos.rl.language.rewards import Rewards
from loomos.storage.layout import blob_key
from loomos.training.data import DocumentFile
from loomos.training.resolve import check_code
from loomos.training.tokenizer import byte_tokenizer
from tests.alone import Alone, alone

__all__ = ["alone"]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

CODE = textwrap.dedent(
    '''
    """Rewards."""
    def matches(completions, answer, **columns):
        return [None if a is None else float(c == a) for c, a in zip(completions, answer)]

    def lengths(prompts, completions):
        return [len(c) - len(p) for p, c in zip(prompts, completions)]
    '''
)
GIVEN: dict[str, list[Any]] = {
    "prompts": ["1 + 1 =", "2 + 2 ="],
    "completions": ["2", "5 or so"],
    "answer": ["2", None],
    "kind": ["easy", "hard"],
}


def rewards(code: str = CODE, **function: Any) -> Rewards:
    made = RewardFunction.model_validate({"file": "rewards.py", "function": "matches", **function})
    return Rewards([made], lambda _: code)


@pytest.mark.parametrize("sandbox", [True, False])
def test_a_file_is_called_as_trl_calls_it(sandbox: bool) -> None:
    found = rewards(sandbox=sandbox)
    assert found(GIVEN) == [1.0, 0.0]  # None counts as nothing
    assert found(GIVEN) == [1.0, 0.0]
    found.close()
    narrow = rewards(function="lengths", sandbox=sandbox, weight=0.5)  # takes no other columns
    assert narrow(GIVEN) == [-3.0, 0.0]
    narrow.close()


def test_trls_own_functions_work_as_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        importlib.metadata.EntryPoint(name, f"trl.rewards:{name}", "loomos.rewards")
        for name in ("think_format_reward", "accuracy_reward")
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries)
    tasks = [PromptTask({"prompt": [{"role": "user", "content": "Think!"}]}) for _ in range(2)]
    given = columns(tasks, ["<think>so it is</think>yes", "yes"])
    assert given["completions"][1] == [{"role": "assistant", "content": "yes"}]
    function = RewardFunction(function="think_format_reward", weight=2.0)
    assert Rewards([function], lambda _: "")(given) == [2.0, 0.0]
    with pytest.raises(InvalidInput, match=r"rewards\.0\.function 'other' is no entry point.*accu"):
        Rewards([RewardFunction(function="other")], lambda _: "")


def body(line: str) -> str:
    return f"def matches(completions, **columns):\n    {line}\n"


@pytest.mark.parametrize("sandbox", [True, False])
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("return [1.0]", "gave 1 instead of 2 rewards"),
        ("return ['a', 'b']", "raised ValueError"),
        ("return [float('nan'), 1]", "ValueError|finite"),
        ("raise KeyError('answer')", "raised KeyError"),
        ("import time; time.sleep(60)", "took longer|stopped: time"),
        ("import os; os._exit(3)", "ended"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_function_that_fails_ends_the_job_and_is_named(
    line: str, said: str, sandbox: bool
) -> None:
    found = rewards(body(line), sandbox=sandbox, timeout="0.5s" if "sleep" in line else "20s")
    with pytest.raises(InvalidInput, match=rf"(?s)^rewards\.0 \(matches\) .*({said})") as caught:
        found(GIVEN)
    assert not caught.value.retryable
    found.close()


def test_a_file_in_the_sandbox_reads_and_reaches_nothing(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("1.0")
    found = rewards(body(f"return [float(open({str(secret)!r}).read())] * 2"))
    with pytest.raises(InvalidInput, match="forbidden call"):
        found(GIVEN)


def test_a_files_own_process_sees_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("LOOMOS_STORAGE__SECRET_KEY", "s")
    line = "import os; n = [k for k in os.environ if k.startswith(('AWS', 'LOOM'))]; print(n); "
    found = rewards(body(line + "return [len(n)] * 2"), sandbox=False)
    assert found(GIVEN) == [0.0, 0.0]
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "s"
    found.close()


def test_a_file_is_read_before_the_job_gets_nodes() -> None:
    function = RewardFunction(file="r.py", function="matches")
    check_code(CODE.encode(), function)
    with pytest.raises(InvalidInput, match=r"no function 'matches' \(there are: other\)"):
        check_code(b"def other(): pass", function)
    with pytest.raises(InvalidInput, match="is not Python"):
        check_code(b"def matches(:", function)


# --- records ------------------------------------------------------------------------------------

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "Hello?"}
GOOD = {"role": "assistant", "content": "Hello."}
BAD = {"role": "assistant", "content": "Well, hello to you too!"}


def documents(tmp_path: Path, shape: str, *records: Any) -> list[Any]:
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    file = DocumentFile(path, path.name, shape, "text")
    return [file.read(number) for number in range(len(records))]


def test_conversational_preferences_are_those_of_trl(tmp_path: Path) -> None:
    explicit = {"prompt": [SYSTEM, ASKED], "chosen": [GOOD], "rejected": [BAD]}
    implicit = {"chosen": [SYSTEM, ASKED, GOOD], "rejected": [SYSTEM, ASKED, BAD]}
    first, second = documents(tmp_path, "preference", explicit, implicit)
    assert first.record == second.record == explicit
    assert first.parts == second.parts
    tokenizer = byte_tokenizer()
    prompt, chosen, rejected = conversational_pair(tokenizer, first.record)

    def rendered(messages: Any, *, asks: bool = False) -> Any:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    assert prompt == rendered([SYSTEM, ASKED], asks=True)
    assert prompt + chosen == rendered([SYSTEM, ASKED, GOOD])
    assert prompt + rejected == rendered([SYSTEM, ASKED, BAD])
    # Without a template ChatML stands in, which is what ours writes.
    assert [text for text, _ in first.parts] == [
        tokenizer.decode(tokens) for tokens in (prompt, chosen, rejected)
    ]


@pytest.mark.parametrize(
    ("shape", "record", "said"),
    [
        ("preference", {"prompt": [ASKED], "chosen": "Hi", "rejected": [BAD]}, "'chosen'"),
        (
            "preference",
            {"prompt": [{"role": "x"}], "chosen": [GOOD], "rejected": [BAD]},
            "'prompt'",
        ),
        ("prompt", {"question": "?"}, "no text in 'prompt'"),
        ("prompt", {"prompt": []}, "'prompt'"),
    ],
)
def test_records_that_are_neither_are_named(
    tmp_path: Path, shape: str, record: Any, said: str
) -> None:
    with pytest.raises(InvalidData, match=f"records.jsonl line 1.*{said}"):
        documents(tmp_path, shape, record)


# --- training -----------------------------------------------------------------------------------


def spec_of(tmp_path: Path, algorithm: str, reward: dict[str, Any], **more: Any) -> TrainingSpec:
    data = tmp_path / "prompts.jsonl"
    records = [{"prompt": f"say {letter}", "letter": "e"} for letter in "abcdefgh"]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    code = tmp_path / "rewards.py"
    code.write_text(
        "def share(completions, letter, **columns):\n"
        "    return [c.count(l) / 8 for c, l in zip(completions, letter)]\n"
    )
    config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    tuning = {"learning_rate": 0.02, "scheduler": "constant", "max_steps": 30, "batch_size": 32}
    return TrainingSpec.model_validate(
        {
            "algorithm": algorithm,
            "data": {"training_dataset": str(data)},
            "rewards": [{"file": str(code), "function": "share", **reward}],
            "model": {
                "base_model": "init:llama",
                "tokenizer": "byte",
                "config": config,
                "fine_tuning_config": {**tuning, "sequence_length": 64},
            },
            **more,
        }
    )


GRPO: dict[str, Any] = {"grpo": {"group_size": 8, "max_completion_tokens": 8, "chat": False}}
PPO: dict[str, Any] = {
    "language_ppo": {"max_completion_tokens": 8, "chat": False, "beta": 0.0, "n_epochs": 2}
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("algorithm", "sandbox", "settings"),
    [
        ("grpo", True, GRPO),
        pytest.param("grpo", False, GRPO, marks=pytest.mark.slow),
        pytest.param("ppo", True, PPO, marks=pytest.mark.slow),
    ],
)
def test_a_model_learns_what_a_function_rewards(
    tmp_path: Path, algorithm: str, sandbox: bool, settings: dict[str, Any]
) -> None:
    """Guessing, one byte in 259 is the letter; in the end half of a reply or more is."""
    job = Alone(tmp_path, spec_of(tmp_path, algorithm, {"sandbox": sandbox}, **settings))
    (pinned,) = job.inputs.rewards
    assert pinned is not None
    (tmp_path / "rewards.py").unlink()  # what counts is what was pinned
    assert job.store.get(blob_key(pinned.sha256)).startswith(b"def share")
    outcome = job.train()
    assert outcome.episode_return is not None
    assert outcome.episode_return > 0.5
    assert job.publish().name == "made"


def test_the_example_is_a_job_whose_function_is_there() -> None:
    folder = Path(__file__).parents[2] / "examples" / "rewards"
    (function,) = JobManifest.from_file(folder / "learn.yaml").job.spec.rewards
    code = (folder / "rewards.py").read_text()
    found = Rewards([function], lambda _: code)
    assert found({"prompts": ["say a "], "completions": ["eeee...."], "letter": ["e"]}) == [0.5]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithm": "sft"}, "rewards are for grpo"),
        ({"environment": "math"}, "remove spec.environment or spec.rewards"),
        ({"data": None}, "rewards need prompts"),
        ({"rewards": []}, "name spec.rewards instead|needs spec.environment"),
        ({"rewards": [{"function": "f", "sandbox": False}]}, "sandbox is for files"),
        ({"rewards": [{"function": "not a name", "file": "a.py"}]}, "no name of a Python function"),
        ({"grpo": {"max_completion_tokens": 64, "group_size": 8}}, "leaves no room for a prompt"),
    ],
)
def test_manifests_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    document = spec_of(tmp_path, "grpo", {}, **GRPO).model_dump(mode="json", exclude_none=True)
    with pytest.raises(ValueError, match=said):
        TrainingSpec.model_validate({**document, **changes})
