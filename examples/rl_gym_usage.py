"""The gym: environments, their settings, and a campaign that trains in several at once.

The campaign needs a running stack (`loomos up`). `python examples/rl_gym_usage.py`
"""

import asyncio

import numpy as np

from loomos.rl import EnvironmentType, LoomRLGym, create_integrated_rl_system


async def basic_environment_usage() -> None:
    """Make environments and act in them."""
    print("Basic environment usage")
    gym = LoomRLGym()
    environments = {}
    for env_type in [EnvironmentType.MATH, EnvironmentType.CODE, EnvironmentType.LANGUAGE]:
        environments[env_type.value] = await gym.create_environment(
            env_type, {"difficulty": "intermediate", "max_steps": 100}
        )

    random = np.random.default_rng(0)
    for env_name, env in environments.items():
        print(f"\nTesting {env_name}:")
        await env.reset()
        for step in range(5):
            action = random.integers(0, env.action_space.n)
            _state, reward, done, _info = await env.step(action)
            print(f"  Step {step + 1}: Action={action}, Reward={reward:.3f}")
            if done:
                break
    await gym.cleanup()


async def multi_environment_training() -> None:
    """Train a policy for each of three environments, on four nodes."""
    print("\nMulti-environment training")
    rl_system = await create_integrated_rl_system(
        algorithm="weave",
        environments=["math", "code", "language"],
        distributed_nodes=4,
        training_config={
            "episodes_per_environment": 100,
            "update_frequency": 20,
            "curriculum_learning": True,
        },
    )
    results = await rl_system.train(
        on_round=lambda report: print(f"  round {report.number} is over", flush=True)
    )
    print("Training results:")
    for env_type, metrics in results.items():
        print(f"  {env_type}:")
        print(f"    Average Reward: {metrics['average_reward']:.3f}")
        print(f"    Success Rate: {metrics['success_rate']:.2%}")
        print(f"    Training Time: {metrics['training_time']:.1f}s")


async def custom_environment_config() -> None:
    """Environments have settings; a wrong one is refused by name."""
    print("\nCustom environment configuration")
    gym = LoomRLGym()
    math_env = await gym.create_environment(
        EnvironmentType.MATH,
        {
            "difficulty": "advanced",
            "problem_types": ["algebra", "calculus", "statistics"],
            "max_steps": 200,
            "reward_shaping": {
                "step_penalty": -0.01,
                "correct_bonus": 10.0,
                "partial_credit": True,
            },
            "curriculum": {
                "start_difficulty": "beginner",
                "progression_rate": 0.1,
                "success_threshold": 0.8,
            },
        },
    )
    code_config = {
        "languages": ["python", "javascript", "sql"],
        "task_types": ["debugging", "optimization", "testing"],
        "code_style_requirements": True,
        "execution_timeout": 30,
        "test_suite_coverage": 0.9,
    }
    code_env = await gym.create_environment(EnvironmentType.CODE, code_config)

    state = await math_env.reset()
    print(f"Math environment state shape: {np.array(state).shape}")
    await code_env.reset()
    print(f"Code environment initialized with {len(code_config['languages'])} languages")
    await gym.cleanup()


async def main() -> None:
    """All of it."""
    await basic_environment_usage()
    await custom_environment_config()
    await multi_environment_training()


if __name__ == "__main__":
    asyncio.run(main())
