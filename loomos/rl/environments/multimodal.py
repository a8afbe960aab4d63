"""Images and sounds, drawn by procedure, with questions whose answers are known by construction."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loomos.manifest import EnvironmentType
from loomos.rl.environments.config import MultimodalConfig
from loomos.rl.environments.math import answer_of
from loomos.rl.environments.task import Family, Task, Verdict, one_hot, pad, spread

SIZE = 48
"""Width and height of images."""

CELLS = 4
"""Shapes stand in a grid of so many by so many cells."""

RATE = 4000
"""Samples a second."""

COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220)}
SHAPES = ("circle", "square", "triangle")
OPTIONS = (*map(str, range(10)), *COLORS, "left", "right", "same")
"""The answers that a policy network chooses among: one an action."""

QUESTIONS = ("count", "largest", "side", "beeps", "pitch")


class Question(NamedTuple):
    """What is asked, and the answer."""

    name: str
    text: str
    answer: str
    about: float
    """Which of the colours, or shapes, it is about, from 0 to 1."""


class MultimodalTask(Task):
    """One question about an image or a sound."""

    def __init__(
        self, kind: str, question: Question, media: dict[str, NDArray[Any]], written: str
    ) -> None:
        self.kind = kind
        self.question = question
        self.media = media  # type: ignore[misc]
        options = ", ".join(OPTIONS)
        self.prompt = (
            f"{question.text}\n\n{written}\n\nAnswer with one of {options}, on the last line after "
            "'Answer:'."
        )
        self._seen = _look(media["image"]) if kind == "image" else _listen(media["sound"])

    def observe(self) -> NDArray[np.float32]:
        """Which question, and the image or sound in coarse."""
        which = one_hot(QUESTIONS.index(self.question.name), len(QUESTIONS))
        return pad(which, [self.question.about], self._seen)

    def act(self, action: int) -> Verdict:
        """Answer."""
        return self._judge(OPTIONS[action])

    def reply(self, completion: str) -> Verdict:
        """Judge what stands after `Answer:`."""
        return self._judge(answer_of(completion).lower())

    def _judge(self, answer: str) -> Verdict:
        if answer == self.question.answer:
            return Verdict(is_over=True, is_correct=True, share=1.0)
        near = 0.0
        if answer in OPTIONS[:10] and self.question.answer in OPTIONS[:10]:
            near = 0.5 / abs(int(answer) - int(self.question.answer))
        return Verdict(is_over=True, share=near, facts={"answer": answer[:50]})

    def solution(self) -> list[int]:
        """The answer."""
        return [OPTIONS.index(self.question.answer)]

    def right_replies(self) -> list[str]:
        """The answer."""
        return [f"Answer: {self.question.answer}"]


def _look(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean colour of each cell of a 4 by 4 grid: 48 numbers, white is 0."""
    cell = SIZE // CELLS
    cells = image.reshape(CELLS, cell, CELLS, cell, 3).mean(axis=(1, 3))
    return np.asarray(1 - cells / 255, np.float32)


def _listen(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """Loudness over 24 stretches of time, and in 24 bands of frequency."""
    loudness = np.sqrt((sound[: len(sound) // 24 * 24].reshape(24, -1) ** 2).mean(axis=1))
    spectrum = np.abs(np.fft.rfft(sound))
    bands = np.array([band.max() for band in np.array_split(spectrum, 24)])
    return np.concatenate([loudness, bands / max(1e-9, bands.max())]).astype(np.float32)


class MultimodalFamily(Family[MultimodalConfig]):
    """See module."""

    name = EnvironmentType.MULTIMODAL
    summary = "Answer questions about drawn images and synthetic sounds."
    config_type = MultimodalConfig

    def make(self, level: float, random: np.random.Generator) -> MultimodalTask:
        """See base class."""
        kind = str(random.choice(self.config.problem_types))
        return _image_task(level, random) if kind == "image" else _sound_task(level, random)


# --- images -------------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """A shape in a cell."""

    row: int
    column: int
    shape: str
    color: str
    radius: int


def _image_task(level: float, random: np.random.Generator) -> MultimodalTask:
    count = int(random.integers(2, spread(4, 9, level) + 1))
    places = random.permutation(CELLS * CELLS)[:count]
    radii = random.permutation(np.arange(2, 6).repeat(3))[:count]
    drawn = [
        Drawn(
            int(place) // CELLS,
            int(place) % CELLS,
            str(random.choice(SHAPES[: spread(1, 3, level)])),
            str(random.choice(list(COLORS))),
            int(radius),
        )
        for place, radius in zip(places, radii, strict=True)
    ]
    name = str(random.choice(["count", "largest", "side"]))
    if name == "largest":  # one of them, and only one
        first = drawn[0]
        drawn = [
            first._replace(radius=6),
            *(d._replace(radius=min(d.radius, 4)) for d in drawn[1:]),
        ]
    question = _about_image(name, drawn, random)
    rows = [
        f"row {d.row + 1}, column {d.column + 1}: {d.color} {d.shape}, radius {d.radius}"
        for d in sorted(drawn)
    ]
    written = "The image, in words:\n" + "\n".join(rows)
    return MultimodalTask("image", question, {"image": draw(drawn)}, written)


def _about_image(name: str, drawn: list[Drawn], random: np.random.Generator) -> Question:
    colors = list(COLORS)
    if name == "largest":
        largest = max(drawn, key=lambda d: d.radius)
        return Question("largest", "Which colour has the largest shape?", largest.color, 0.0)
    color = str(random.choice(colors))
    about = colors.index(color) / (len(colors) - 1)
    mine = [d for d in drawn if d.color == color]
    if name == "count":
        return Question("count", f"How many {color} shapes are there?", str(len(mine)), about)
    left = sum(d.column < CELLS // 2 for d in mine)
    right = len(mine) - left
    answer = "left" if left > right else "right" if right > left else "same"
    return Question(
        "side",
        f"Which half has more {color} shapes: left, right, or is it the same?",
        answer,
        about,
    )


def draw(drawn: list[Drawn]) -> NDArray[np.uint8]:
    """The image [48, 48, 3]: filled shapes on white."""
    image = np.full((SIZE, SIZE, 3), 255, np.uint8)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    cell = SIZE // CELLS
    for d in drawn:
        up, across = y - (d.row * cell + cell // 2), x - (d.column * cell + cell // 2)
        if d.shape == "circle":
            inside = up**2 + across**2 <= d.radius**2
        elif d.shape == "square":
            inside = np.maximum(np.abs(up), np.abs(across)) <= d.radius * 0.8
        else:
            inside = (up <= d.radius * 0.7) & (2 * np.abs(across) <= up + d.radius)
        image[inside] = COLORS[d.color]
    return image


# --- sounds -------------------------------------------------------------------------------------


def _sound_task(level: float, random: np.random.Generator) -> MultimodalTask:
    noise = random.normal(0, 0.05 * level, RATE).astype(np.float32)
    if random.random() < 0.5:
        beeps = int(random.integers(1, spread(4, 9, level) + 1))
        pitch = int(random.integers(300, 900))
        sound = noise + sum(_tone(pitch, n * 0.1 + 0.02, 0.06) for n in range(beeps))
        question = Question("beeps", "How many beeps are there?", str(beeps), 0.0)
        written = f"The sound, in words: {' '.join(['beep'] * beeps)}"
        return MultimodalTask("audio", question, {"sound": sound.astype(np.float32)}, written)
    first = int(random.integers(300, 900))
    away = int(random.integers(spread(200, 40, level), 400)) * int(random.choice([-1, 0, 1]))
    second = first + away if first + away >= 100 else first + abs(away)
    sound = noise + _tone(first, 0.05, 0.4) + _tone(second, 0.55, 0.4)
    answer = "same" if first == second else "left" if first > second else "right"
    question = Question(
        "pitch", "Which tone is higher: the first (left), the second (right), or same?", answer, 0.0
    )
    written = f"The sound, in words: a tone of {first} Hz, then a tone of {second} Hz"
    return MultimodalTask("audio", question, {"sound": sound.astype(np.float32)}, written)


def _tone(pitch: int, start_s: float, length_s: float) -> NDArray[np.float32]:
    """A second of silence with a sine in it."""
    time = np.arange(RATE) / RATE
    during = (time >= start_s) & (time < start_s + length_s)
    return np.asarray(0.5 * np.sin(2 * np.pi * pitch * time) * during, np.float32)
