"""A first look: an environment, a WEAVE policy that acts in it, and a few episodes.

Everything runs in this process, nothing is trained. `python examples/quick_demo.py`
"""

import asyncio

from loomos.blocks.registry import BlockRegistry
from loomos.core.loomdb import LoomDB
from loomos.rl import LoomRLGym, create_weave_algorithm

EPISODES = 10


async def main() -> None:
    """Play ten episodes of arithmetic."""
    # 1. The parts
    gym = LoomRLGym()
    registry = BlockRegistry()

    # 2. An environment
    env = await gym.create_environment(
        "math", {"difficulty": "beginner", "problem_types": ["arithmetic"]}
    )

    # 3. A policy
    weave = create_weave_algorithm(
        exploration_strategies=["entropy_based", "curiosity_driven"],
        reward_threads=["task_completion", "efficiency"],
    )

    # 4. Episodes, each an event of the database
    async with LoomDB() as db:
        total_reward = 0.0
        for episode in range(EPISODES):
            state = await env.reset()
            episode_reward = 0.0
            for _step in range(50):
                action, _log_prob, _value = weave.get_action(state)
                state, reward, done, _info = await env.step(action)
                episode_reward += reward
                if done:
                    break
            total_reward += episode_reward
            await db.log_event("episode_played", {"number": episode, "reward": episode_reward})
            print(f"Episode {episode + 1}: Reward = {episode_reward:.2f}")

    print(f"\nAverage reward: {total_reward / EPISODES:.2f}")
    print(f"Blocks: {len(await registry.list_blocks())}")


if __name__ == "__main__":
    asyncio.run(main())
