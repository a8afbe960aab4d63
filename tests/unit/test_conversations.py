"""Language models that talk with tasks: what is theirs, what is read, what it is worth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from loomos.errors import InvalidModel
from loomos.manifest import Completions
from loomos.rl.advantages import gae
from loomos.rl.environments.environment import FamilyEnvironment
from loomos.rl.environments.task import Task, Verdict
from loomos.rl.language.conversations import Conversation, Talker, as_samples
from loomos.rl.language.ppo import token_advantages
from loomos.rl.language.sampling import completion_log_probs, completion_states, sample
from loomos.training.tokenizer import byte_tokenizer


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tiny_model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(byte_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return AutoModelForCausalLM.from_config(config).eval()


class Echo(Task):
    """Says what it heard, and is over after so many replies; right if the last says so."""

    kind = "echo"
    has_turns = True

    def __init__(self, prompt: str, turns: int) -> None:
        self.prompt, self.turns, self.heard = prompt, turns, list[str]()

    def reply(self, completion: str) -> Verdict:
        self.heard.append(completion)
        over = len(self.heard) == self.turns
        return Verdict(is_over=over, is_correct=over, share=1.0, message=f"{len(self.heard)}?")

    def observe(self) -> Any:
        return np.zeros(64, np.float32)

    def act(self, action: int) -> Verdict:
        return self.reply(str(action))

    def solution(self) -> list[int]:
        return [0] * self.turns

    def right_replies(self) -> list[str]:
        return ["anything"] * self.turns


def talker(environment: Any = "tool_call", longest: int = 400, **config: Any) -> Talker:
    made = FamilyEnvironment(environment, {"reward_shaping": {"step_penalty": -0.25}})
    completions = Completions(max_completion_tokens=6, chat=False, **config)
    return Talker(byte_tokenizer(), made, completions, longest)


def text(conversation: Conversation, *, own: bool) -> str:
    tokens = [
        t for t, mine in zip(conversation.tokens, conversation.is_own, strict=True) if mine == own
    ]
    said: str = byte_tokenizer().decode(tokens, skip_special_tokens=True)
    return said


def test_a_conversation_goes_on_until_the_task_is_over() -> None:
    torch.manual_seed(1)
    tasks: list[list[Task]] = [
        [Echo("one", 1), Echo("one", 1)],
        [Echo("three", 3), Echo("three", 3)],
    ]
    held = talker().talk(tiny_model(), tasks, temperature=1.0)
    assert [c.turns for c in held] == [1, 1, 3, 3]
    assert [c.reward for c in held] == [0.75, 0.75, 0.25, 0.25]  # a quarter a reply, 1 in the end
    assert all(c.is_over and c.is_correct for c in held)
    for conversation in held:
        task = conversation.task
        assert isinstance(task, Echo)
        assert text(conversation, own=True) == "".join(task.heard)
        said = "".join(f"\n{n}?\n" for n in range(1, task.turns))
        assert text(conversation, own=False) == said


def test_single_replies_are_what_sampling_gives() -> None:
    model, tokenizer = tiny_model(), byte_tokenizer()
    tasks: list[list[Task]] = [[Echo("one", 1)] * 1, [Echo("longer", 1)] * 1]
    torch.manual_seed(3)
    held = talker().talk(model, tasks, temperature=1.0)
    torch.manual_seed(3)
    prompts = [list(tokenizer(name)["input_ids"]) for name in ("one", "longer")]
    end = tokenizer.eos_token_id
    plain = sample(model, prompts, copies=1, longest=6, temperature=1.0, end=end, pad=end)
    samples = as_samples(held, end, torch.device("cpu"))
    for name, tensor in vars(plain).items():
        torch.testing.assert_close(getattr(samples, name), tensor, rtol=0, atol=0)


def test_replies_are_scored_as_they_were_written() -> None:
    """A token's log-probability in the padded batch is that of its own transcript alone."""
    torch.manual_seed(2)
    model = tiny_model()
    tasks: list[list[Task]] = [[Echo("one", 2)], [Echo("three words more", 3)]]
    held = talker().talk(model, tasks, temperature=1.0)
    samples = as_samples(held, byte_tokenizer().eos_token_id, torch.device("cpu"))
    with torch.no_grad():
        found, states = completion_states(model, samples)
        for number, conversation in enumerate(held):
            tokens = torch.tensor([[*conversation.prompt, *conversation.tokens]])
            logits = model(input_ids=tokens).logits[0].log_softmax(-1)
            first = len(conversation.prompt)
            alone = logits[first - 1 : -1].gather(1, tokens[0, first:, None])[:, 0]
            torch.testing.assert_close(found[number, : len(alone)], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, completion_log_probs(model, samples))
    assert states.shape == (*samples.completions.shape, 32)
    assert samples.mask.sum() == sum(sum(c.is_own) for c in held) < samples.attended.sum()


@pytest.mark.parametrize(
    ("changes", "turns"),
    [({"max_turns": 2}, 2), ({"longest": 40}, 3), ({}, 8)],
)
def test_a_conversation_that_gets_too_long_is_cut(changes: dict[str, Any], turns: int) -> None:
    torch.manual_seed(0)
    (held,) = talker(**changes).talk(tiny_model(), [[Echo("on and on", 99)]], temperature=1.0)
    assert held.is_over
    assert held.is_cut
    assert not held.is_correct
    assert held.turns == turns
    assert held.reward == -0.25 * turns
    assert held.is_own[-1]  # what nobody answers is not said
    assert len(held.prompt) + len(held.tokens) <= changes.get("longest", 400)


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_chat_goes_on_as_its_template_has_it() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    environment = FamilyEnvironment("tool_call", {})
    chat = Talker(tokenizer, environment, Completions(max_completion_tokens=6, max_turns=3), 400)
    torch.manual_seed(0)
    (held,) = chat.talk(tiny_model(), [[Echo("hello", 3)]], temperature=1.0)
    task = held.task
    assert isinstance(task, Echo)
    end = tokenizer.eos_token
    said = tokenizer.decode([*held.prompt, *held.tokens])
    first, second, third = task.heard
    expected = (
        f"<user>hello{end}\n<assistant>{first}{end}\n<user>1?{end}\n<assistant>{second}{end}\n"
        f"<user>2?{end}\n<assistant>{third}"
    )
    assert said.removesuffix(end) == expected

    tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(InvalidModel, match="set chat: false"):
        chat.talk(tiny_model(), [[Echo("hello", 2)]], temperature=1.0)


# --- advantages of tokens -----------------------------------------------------------------------


def test_advantages_of_tokens_are_those_of_steps() -> None:
    """Without gaps they equal the recursion for steps that every other algorithm uses."""
    torch.manual_seed(0)
    values, divergence = torch.randn(3, 5), torch.randn(3, 5)
    rewards = torch.tensor([1.0, 0.0, -1.0])
    found, returns = token_advantages(
        rewards, divergence, values, torch.ones(3, 5), beta=0.1, gamma=0.9, gae_lambda=0.8
    )
    steps = -0.1 * divergence.T.unsqueeze(-1)
    steps[-1, :, 0] += rewards
    over = torch.zeros(5, 3, dtype=torch.bool)
    over[-1] = True
    expected, targets = gae(
        steps,
        values.T.unsqueeze(-1),
        torch.cat([values.T[1:], torch.zeros(1, 3)]).unsqueeze(-1),
        over,
        torch.zeros_like(over),
        gamma=0.9,
        gae_lambda=0.8,
    )
    torch.testing.assert_close(found, expected[..., 0].T)
    torch.testing.assert_close(returns, targets[..., 0].T)


def test_what_a_task_says_is_no_step() -> None:
    """Cutting out the task's words changes no advantage, and padding has none."""
    torch.manual_seed(0)
    values, divergence = torch.randn(1, 4), torch.randn(1, 4)
    rewards = torch.tensor([1.0])
    options = {"beta": 0.1, "gamma": 0.9, "gae_lambda": 0.8}
    short, _ = token_advantages(rewards, divergence, values, torch.ones(1, 4), **options)
    places = torch.tensor([0, 1, 4, 5])
    mask, wide, far = torch.zeros(1, 8), torch.randn(1, 8), torch.randn(1, 8)
    mask[:, places], wide[:, places], far[:, places] = 1.0, values, divergence
    found, returns = token_advantages(rewards, far, wide, mask, **options)
    torch.testing.assert_close(found[:, places], short)
    assert found[mask == 0].abs().sum() == 0
    assert returns[mask == 0].abs().sum() == 0
