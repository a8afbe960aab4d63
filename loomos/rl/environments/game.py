"""Games against an opponent. The rules and what is best are OpenSpiel's (arXiv:1908.09453)."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loomos.manifest import EnvironmentType
from loomos.rl.environments.config import GameConfig
from loomos.rl.environments.task import Family, Task, Verdict, one_hot, pad

GAMES = {
    "tic_tac_toe": "tic_tac_toe",
    "connect_four": "connect_four",
    "nim": "nim(pile_sizes=1;3;3,is_misere=False)",
    "kuhn_poker": "kuhn_poker",
}
"""Ours, and OpenSpiel's with its parameters."""

KINDS = list(GAMES)
LOOKAHEAD = 5
"""Moves that connect four is searched ahead; the others are searched to their end."""

MOST_TRIES = 400
"""Moves that are tried to find out how well one can do."""

RULES = {
    "tic_tac_toe": "Tic-tac-toe on cells numbered 0 to 8, row by row; three in a row win.",
    "connect_four": "Connect four; a move is a column from 0 to 6; four in a row win.",
    "nim": "Nim; a move takes any number from one pile; whoever takes the last wins.",
    "kuhn_poker": "Kuhn poker with cards 0, 1 and 2; a bet is 1; the higher card wins.",
}


@functools.cache
def _game(kind: str) -> Any:
    import pyspiel

    return pyspiel.load_game(GAMES[kind])


class GameTask(Task):
    """One game, in which the learner is the first or the second player."""

    has_turns = True

    def __init__(self, kind: str, skill: float, random: np.random.Generator) -> None:
        self.kind = kind
        self._skill, self._random = skill, random
        self._state = _game(kind).new_initial_state()
        self._player = int(random.integers(2)) if kind != "nim" else 0
        self._go_on()
        self.prompt = (
            f"{RULES[kind]} You are player {self._player}. Answer with the number of your move on "
            f"the last line after 'Move:'.\n\n{self._shown()}"
        )

    def observe(self) -> NDArray[np.float32]:
        """The game, which moves are legal, and the board from the learner's side."""
        legal = np.zeros(10, np.float32)
        if not self._state.is_terminal():
            for move in self._state.legal_actions(self._player):
                legal[move] = 1
        return pad(one_hot(KINDS.index(self.kind), len(KINDS)), legal, self._board())

    def _board(self) -> list[float]:
        state, me = self._state, self._player
        if self.kind == "kuhn_poker":
            return [float(x) for x in state.information_state_tensor(me)]
        if self.kind == "nim":
            return [int(n) / 3 for n in re.findall(r"\d+", str(state))[1:]]
        mine, theirs = ("x", "o") if me == 0 else ("o", "x")
        signs = {mine: 1.0, theirs: -1.0, ".": 0.0}
        return [signs[cell] for cell in str(state) if cell in signs]

    def act(self, action: int) -> Verdict:
        """Make a move; what is no legal move loses."""
        if action not in self._state.legal_actions(self._player):
            return Verdict(
                is_over=True, message="That is no legal move.", facts={"illegal": action}
            )
        self._state.apply_action(action)
        self._go_on()
        if not self._state.is_terminal():
            return Verdict(message=self._shown())
        best = _game(self.kind).max_utility()
        won = self._state.returns()[self._player]
        share = (won + best) / (2 * best)
        return Verdict(is_over=True, is_correct=won > 0, share=share, facts={"return": won})

    def reply(self, completion: str) -> Verdict:
        """Make the move that is named after the last `Move:`."""
        _, found, after = completion[-100_000:].rpartition("Move:")
        number = re.fullmatch(r"\s*(\d{1,2})\s*\.?\s*", after if found else completion, re.ASCII)
        return self.act(int(number[1]) if number else -1)

    def _go_on(self) -> None:
        """Let chance and the opponent play until it is the learner's turn."""
        state = self._state
        while not state.is_terminal() and state.current_player() != self._player:
            if state.is_chance_node():
                moves, weights = zip(*state.chance_outcomes(), strict=True)
                state.apply_action(int(self._random.choice(moves, p=weights)))
            elif self._random.random() < self._skill:
                state.apply_action(best_move(self.kind, state))
            else:
                state.apply_action(int(self._random.choice(state.legal_actions())))

    def _shown(self) -> str:
        state = self._state
        if state.is_terminal():
            return ""
        if self.kind == "kuhn_poker":
            seen = state.information_state_string(self._player)
            board = f"Your card is {seen[0]}; so far: {seen[1:] or 'nothing'} (p pass, b bet)."
        else:
            board = str(state)
        moves = ", ".join(
            f"{move} ({state.action_to_string(self._player, move)})"
            for move in state.legal_actions(self._player)
        )
        return f"{board}\nMoves: {moves}"

    def solution(self) -> list[int]:
        """Moves that do as well as can be against this opponent, found by trying them."""
        return _best_line(self, [MOST_TRIES])[1]

    def _copy(self) -> GameTask:
        twin = object.__new__(GameTask)
        twin.__dict__.update(self.__dict__)
        twin._state = self._state.clone()
        twin._random = np.random.default_rng()
        twin._random.bit_generator.state = self._random.bit_generator.state
        return twin

    def right_replies(self) -> list[str]:
        """The moves of `solution`."""
        return [f"Move: {move}" for move in self.solution()]


def _best_line(task: GameTask, tries: list[int]) -> tuple[float, list[int]]:
    """The best share that moves from here lead to, and those moves; looks no further than a win."""
    legal = task._state.legal_actions(task._player)
    first = best_move(task.kind, task._state)
    best, line = -1.0, [first]
    for move in sorted(legal, key=lambda move: move != first):
        if tries[0] <= 0 and best >= 0:
            break
        tries[0] -= 1
        tried = task._copy()
        verdict = tried.act(move)
        share, rest = (verdict.share, []) if verdict.is_over else _best_line(tried, tries)
        if share > best:
            best, line = share, [move, *rest]
        if best == 1:
            break
    return best, line


def best_move(kind: str, state: Any) -> int:
    """The best move of the player to move; the first of several."""
    if kind == "kuhn_poker":
        return _cautious_move(state)
    if kind == "connect_four":
        return _search(state, LOOKAHEAD, -2, 2)[1]
    return _solve(kind, str(state), state)[1]


_SOLVED: dict[tuple[str, str], tuple[float, int]] = {}


def _solve(kind: str, key: str, state: Any) -> tuple[float, int]:
    """Value for and best move of the player to move, by searching to the end; remembered."""
    if (kind, key) not in _SOLVED:
        player, best, best_move_ = state.current_player(), -2.0, -1
        for move in state.legal_actions():
            after = state.child(move)
            if after.is_terminal():
                value = after.returns()[player]
            else:
                value = -_solve(kind, str(after), after)[0]
            if value > best:
                best, best_move_ = value, move
        _SOLVED[kind, key] = (best, best_move_)
    return _SOLVED[kind, key]


def _search(state: Any, depth: int, low: float, high: float) -> tuple[float, int]:
    """Negamax with alpha-beta; a position at the horizon counts nothing."""
    player, best, best_move_ = state.current_player(), -2.0, -1
    for move in state.legal_actions():
        after = state.child(move)
        if after.is_terminal():
            value = after.returns()[player]
        else:
            value = -_search(after, depth - 1, -high, -low)[0] if depth > 1 else 0.0
        if value > best:
            best, best_move_ = value, move
        low = max(low, value)
        if low >= high:
            break
    return best, best_move_


def _cautious_move(state: Any) -> int:
    """Bets and calls with the highest card only."""
    return int(state.information_state_string(state.current_player())[0] == "2")


class GameFamily(Family[GameConfig]):
    """See module."""

    name = EnvironmentType.GAME
    summary = "Win games against an opponent that plays the better the harder it is."
    config_type = GameConfig

    def make(self, level: float, random: np.random.Generator) -> GameTask:
        """See base class."""
        return GameTask(str(random.choice(self.config.problem_types)), level, random)
