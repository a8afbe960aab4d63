"""LoomOS as an ordinary Python library: context managers, iteration, exceptions, decorators.

Everything runs in this process. `python examples/normal_usage_patterns.py`
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Self

from loomos.blocks import BlockRegistry
from loomos.core import LoomDB, Scheduler
from loomos.rl import LoomRLGym, PPOTrainer, WeaveAlgorithm


class CustomTrainingPipeline:
    """A class of one's own around the gym."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.gym = LoomRLGym()
        self.scheduler = Scheduler()

    async def __aenter__(self) -> Self:
        await self.gym.initialize()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.gym.cleanup()

    def __len__(self) -> int:
        return len(self.config.get("environments", []))

    def __getitem__(self, key: str) -> Any:
        return self.config[key]

    async def train(self, episodes: int = 100) -> dict[str, float]:
        """Mean reward of always the same action, by environment."""
        results = {}
        for env_name in self.config["environments"]:
            env = await self.gym.create_environment(env_name, {})
            total_reward = 0.0
            for _episode in range(episodes):
                await env.reset()
                done = False
                while not done:
                    _state, reward, done, _info = await env.step(0)
                    total_reward += reward
            results[env_name] = total_reward / episodes
        return results


async def standard_usage_examples() -> None:
    """What one would expect of any library."""
    gym = LoomRLGym()

    # Context managers
    async with CustomTrainingPipeline({"environments": ["math", "code"]}) as pipeline:
        results = await pipeline.train(episodes=10)
        print(f"Results of {len(pipeline)} environments: {results}")

    # Comprehensions
    environments = [await gym.create_environment(name, {}) for name in ("math", "code", "language")]
    print(f"Made: {', '.join(env.name for env in environments)}")

    # Dictionaries as settings
    trainer = PPOTrainer({"learning_rate": 0.001, "batch_size": 32})
    print(f"Learning rate: {trainer.config.learning_rate}")

    async with LoomDB() as db:
        # Exceptions
        try:
            await db.get_job_status("nonexistent_job")
        except ValueError as error:
            print(f"Expected error: {error}")

        # Decorators
        @db.log_performance
        async def training_function() -> dict[str, float]:
            return {"accuracy": 0.95}

        print(f"Decorated function result: {await training_function()}")

        # Async iteration
        async for event in db.stream_events(["performance_metric"]):
            print(f"Event: {event.event_type} {event.data['accuracy']}")
            break

    print(f"Blocks: {len(await BlockRegistry().list_blocks())}")


def create_training_system(algorithm: str = "ppo") -> PPOTrainer | WeaveAlgorithm:
    """A factory.

    Raises:
        ValueError: there is no such algorithm.
    """
    if algorithm == "ppo":
        return PPOTrainer({})
    if algorithm == "weave":
        return WeaveAlgorithm()
    raise ValueError(f"Unknown algorithm: {algorithm}")


async def batch_training_results() -> AsyncIterator[dict[str, float]]:
    """Results as they come."""
    for batch_id in range(5):
        await asyncio.sleep(0.01)
        yield {"batch_id": batch_id, "loss": 1.0 / (batch_id + 1)}


async def main() -> None:
    """All of it."""
    await standard_usage_examples()
    trainer = create_training_system("weave")
    print(f"Created trainer: {type(trainer).__name__}")
    async for result in batch_training_results():
        print(f"  Batch {result['batch_id']}: Loss={result['loss']:.3f}")


if __name__ == "__main__":
    asyncio.run(main())
