"""DPO and GRPO equal TRL's numbers, loss and gradients, and keep the laws that they rest on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from loomos.rl.language.sampling import Row, completion_log_probs, padded, sample
from loomos.rl.losses import dpo_loss, group_advantages, grpo_loss
from loomos.training.tokenizer import byte_tokenizer

TINY = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that TRL can load, with weights far enough from zero to prefer something."""
    path = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**TINY, bos_token_id=None, eos_token_id=256))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.1)
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def gradients(model: Any) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def differ(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Norm of the gradients' difference, relative to that of the gradient."""
    assert ours.keys() == theirs.keys() and ours
    away = math.sqrt(sum(float((ours[n] - theirs[n]).square().sum()) for n in ours))
    found = away / math.sqrt(sum(float(theirs[n].square().sum()) for n in ours))
    return found


# --- DPO ----------------------------------------------------------------------------------------

PAIRS = [
    {"prompt": f"Question {n}: what is {n} + 1?", "chosen": f" It is {n + 1}.", "rejected": " No."}
    for n in range(6)
]


def our_dpo(policy: Any, reference: Any, kind: Any) -> Any:
    tokenizer = byte_tokenizer()
    rows = [
        (tokenizer(pair["prompt"])["input_ids"], [*tokenizer(pair[side])["input_ids"], 256])
        for side in ("chosen", "rejected")
        for pair in PAIRS
    ]
    samples = padded([Row(*row) for row in rows], 256)
    log_probs = (completion_log_probs(policy, samples) * samples.mask).sum(-1)
    with torch.no_grad():
        before = (completion_log_probs(reference, samples) * samples.mask).sum(-1)
    lengths = samples.mask.sum(-1).chunk(2)
    return dpo_loss(
        chosen=log_probs.chunk(2)[0],
        rejected=log_probs.chunk(2)[1],
        reference_chosen=before.chunk(2)[0],
        reference_rejected=before.chunk(2)[1],
        beta=0.1,
        kind=kind,
        chosen_lengths=lengths[0],
        rejected_lengths=lengths[1],
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo"])
def test_dpo_equals_trl_s(folder: Path, tmp_path: Path, kind: str) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    policy, reference = load(folder), load(folder)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    theirs = load(folder)
    theirs.load_state_dict(policy.state_dict())
    trainer = DPOTrainer(
        model=theirs,
        ref_model=load(folder),
        args=DPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=len(PAIRS),
            beta=0.1,
            loss_type=[kind],
            report_to=[],
            use_cpu=True,
            gradient_checkpointing=False,
            bf16=False,
        ),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=byte_tokenizer(),
    )
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(len(PAIRS))])
    trainer.model.train()
    expected = trainer.compute_loss(trainer.model, dict(batch))
    expected.backward()
    loss = our_dpo(policy.train(), reference, kind)
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert differ(gradients(policy), gradients(trainer.model)) < 1e-5


def test_a_policy_that_is_its_reference_has_a_loss_of_ln_2(folder: Path) -> None:
    model = load(folder)
    loss = our_dpo(model, model, "sigmoid")
    assert float(loss.total.detach()) == pytest.approx(math.log(2))
    assert float(loss.margins.abs().max()) == 0


def test_swapping_the_pair_mirrors_the_margin() -> None:
    a, b, c, d = (torch.randn(5) for _ in range(4))
    one = dpo_loss(chosen=a, rejected=b, reference_chosen=c, reference_rejected=d, beta=0.3)
    other = dpo_loss(chosen=b, rejected=a, reference_chosen=d, reference_rejected=c, beta=0.3)
    assert torch.allclose(one.margins, -other.margins)
    assert float(one.accuracy) == pytest.approx(1 - float(other.accuracy))


# --- GRPO ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_grpo_equals_trl_s(folder: Path, tmp_path: Path, kind: Any, beta: float) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    policy, reference = load(folder), load(folder)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    theirs = load(folder)
    theirs.load_state_dict(policy.state_dict())
    trainer = GRPOTrainer(
        model=theirs,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=12,
            beta=beta,
            loss_type=kind,
            epsilon=0.1,
            epsilon_high=0.3,
            temperature=0.7,
            use_bias_correction_kl=False,
            report_to=[],
            use_cpu=True,
            gradient_checkpointing=False,
            bf16=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": "x"}] * 8),
        processing_class=byte_tokenizer(),
    )
    prompts = [list(b"What is 2 + 3?"), list(b"And now?")]
    samples = sample(policy, prompts, copies=4, longest=12, temperature=0.7, end=256, pad=256)
    advantages = group_advantages(torch.randn(8), 4)
    with torch.no_grad():
        before = completion_log_probs(reference, samples, 0.7)
    old = completion_log_probs(policy, samples, 0.7).detach() + 0.2 * torch.randn(before.shape)
    trainer.model.train()
    # TRL measures what it reports over the batch that it would have generated.
    trainer.current_gradient_accumulation_steps = 1
    expected = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": samples.prompts,
            "prompt_mask": samples.prompt_mask,
            "completion_ids": samples.completions,
            "completion_mask": samples.mask.long(),
            "advantages": advantages,
            "old_per_token_logps": old,
            "ref_per_token_logps": before,
            "num_items_in_batch": samples.mask.sum(),
        },
    )
    expected.backward()
    loss = grpo_loss(
        log_probs=completion_log_probs(policy.train(), samples, 0.7),
        old_log_probs=old,
        advantages=advantages,
        mask=samples.mask,
        clip_low=0.1,
        clip_high=0.3,
        kind=kind,
        longest=12,
        tokens=samples.mask.sum(),
        reference_log_probs=before,
        beta=beta,
    )
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5, abs=1e-8)
    assert differ(gradients(policy), gradients(trainer.model)) < 1e-5


def test_groups_of_equal_rewards_have_no_advantage() -> None:
    rewards = torch.tensor([1.0, 1, 1, 1, 0, 1, 0, 0])
    advantages = group_advantages(rewards, 4)
    assert advantages[:4].tolist() == [0, 0, 0, 0]
    assert float(advantages[4:].sum()) == pytest.approx(0, abs=1e-6)
    assert torch.allclose(group_advantages(rewards + 7, 4), advantages, atol=1e-5)
    assert torch.allclose(group_advantages(rewards * 3, 4), advantages, atol=1e-3)
    plain = group_advantages(rewards, 4, scale="none")
    assert plain[4:].tolist() == [-0.25, 0.75, -0.25, -0.25]


def test_masked_tokens_and_the_prompt_have_no_gradient() -> None:
    log_probs = torch.randn(2, 5, requires_grad=True)
    mask = torch.tensor([[1.0, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    loss = grpo_loss(
        log_probs=log_probs,
        old_log_probs=log_probs.detach(),
        advantages=torch.tensor([1.0, 2.0]),
        mask=mask,
        clip_low=0.2,
        clip_high=0.2,
        kind="grpo",
        longest=5,
    )
    loss.total.backward()
    assert log_probs.grad is not None
    assert ((log_probs.grad != 0) == mask.bool()).all()
    assert not math.isnan(float(loss.total.detach()))


# --- sampling -----------------------------------------------------------------------------------


def test_samples_are_those_of_transformers(folder: Path) -> None:
    """Greedy: the same tokens as `generate` gives to the same prompts of unequal length."""
    model = load(folder).eval()
    prompts = [list(b"Hello there"), list(b"Hi")]
    ours = sample(model, prompts, copies=2, longest=20, temperature=0, end=256, pad=256)
    for row, prompt in enumerate(prompts):
        whole = model.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=256,
            pad_token_id=256,
        )  # fmt: skip
        expected = whole[0, len(prompt) :]
        for copy in (2 * row, 2 * row + 1):
            length = int(ours.mask[copy].sum())
            assert ours.completions[copy, :length].tolist() == expected[:length].tolist()


def test_scores_are_those_of_a_pass_without_padding(folder: Path) -> None:
    model = load(folder).eval()
    samples = sample(
        model, [list(b"One"), list(b"A much longer one")], copies=1, longest=9, temperature=1.0,
        end=256, pad=256,
    )  # fmt: skip
    found = completion_log_probs(model, samples).detach()
    for row, prompt in enumerate([list(b"One"), list(b"A much longer one")]):
        length = int(samples.mask[row].sum())
        written = samples.completions[row, :length].tolist()
        with torch.no_grad():
            logits = model(torch.tensor([prompt + written])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)[range(length), written]
        assert torch.allclose(found[row, :length], expected, atol=1e-5)


def test_a_completion_ends_where_it_ends(folder: Path) -> None:
    model = load(folder).eval()
    samples = sample(model, [list(b"Go")], copies=64, longest=60, temperature=2.0, end=65, pad=256)
    for row in range(64):
        length = int(samples.mask[row].sum())
        written = samples.completions[row, :length].tolist()
        assert 65 not in written[:-1]
        assert bool(samples.is_cut[row]) == (written[-1] != 65)
    assert samples.mask.shape == samples.completions.shape
