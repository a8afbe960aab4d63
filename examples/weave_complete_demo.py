"""WEAVE: in this process, as the Apollo campaign, and in several environments.

Campaigns need a running stack (`loomos up`). `python examples/weave_complete_demo.py`
"""

import asyncio

import numpy as np

from loomos.rl.algos import (
    ExplorationStrategy,
    RewardThread,
    create_apollo_weave_trainer,
    create_weave_algorithm,
    create_weave_gym_trainer,
)


def demo_basic_weave() -> None:
    """Learn from batches of one's own, with four nodes that specialise."""
    print("WEAVE, basic")
    weave = create_weave_algorithm(
        exploration_strategies=[
            ExplorationStrategy.ENTROPY_BASED,
            ExplorationStrategy.CURIOSITY_DRIVEN,
            ExplorationStrategy.UCB_EXPLORATION,
        ],
        reward_threads=[
            RewardThread.TASK_COMPLETION,
            RewardThread.SAFETY,
            RewardThread.CREATIVITY,
        ],
        num_nodes=4,
    )
    random = np.random.default_rng(0)
    for step in range(5):
        batch = {
            "states": random.normal(size=(16, weave.config.state_dim)),
            "actions": random.integers(0, weave.config.action_dim, 16),
            "rewards": random.normal(size=16),
            "log_probs": random.normal(size=16) * 0.1,
            "dones": random.random(16) < 0.5,
        }
        metrics = weave.train_step(batch)
        print(f"Step {step + 1}: Loss={metrics['actor_loss']:.4f}")

    action, _log_prob, value = weave.get_action(random.normal(size=weave.config.state_dim))
    print(f"Action: {action}, Value: {value:.3f}")


async def demo_apollo_training() -> None:
    """One policy for three objectives, by three groups of nodes."""
    print("\nApollo")
    trainer = create_apollo_weave_trainer(
        total_episodes=100,  # few, to be quick
        coherence_nodes=20,
        safety_nodes=20,
        creativity_nodes=60,
    )
    results = await trainer.run_apollo_training_campaign(
        on_round=lambda report: print(f"  round {report.number} {report.phase}", flush=True)
    )
    print(f"Final Performance: {results['final_balanced_performance']:.3f}")
    print(f"Objective Weights: {results['final_objective_weights']}")

    analysis = trainer.analyze_apollo_results(results)
    print(f"Converged: {analysis['convergence_analysis']['converged']}")
    effective = analysis["curriculum_effectiveness"]["curriculum_effective"]
    print(f"Curriculum Effective: {effective}")


async def demo_gym_integration() -> None:
    """A policy for each environment, each rewarded by threads of its own."""
    print("\nWEAVE in the gym")
    trainer = create_weave_gym_trainer(
        environment_specializations={
            "math": [RewardThread.TASK_COMPLETION, RewardThread.EFFICIENCY],
            "code": [RewardThread.SAFETY, RewardThread.COHERENCE],
        }
    )
    trainer.initialize_weave_algorithms()
    results = await trainer.run_multi_environment_training(
        num_episodes_per_env=20, environments=["math", "code"]
    )
    print("Training results:")
    for env_type, performance in results["final_performances"].items():
        print(f"  {env_type}: {performance:.3f}")


async def main() -> None:
    """All of it."""
    demo_basic_weave()
    await demo_apollo_training()
    await demo_gym_integration()
    print("\nWEAVE demos completed")


if __name__ == "__main__":
    asyncio.run(main())
