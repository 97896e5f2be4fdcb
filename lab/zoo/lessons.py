"""What a training sees: its own pictures, preprocessed like any image at inference, and questions about each of them.

Pictures come from the same functions as those of the benchmarks, on streams that carry the training's seed in their name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaProcessor

from lab.suite import bars, benchmarks, written
from lab.zoo.settings import GENERATORS, TURN_TYPES, Training
from lmms_visual_heads.probe import generation, questions
from lmms_visual_heads.probe.drawing import draw_scene
from lmms_visual_heads.probe.layout import COLOUR_NAMES, DIGITS, KIND_NAMES, QUADRANTS, Scene
from lmms_visual_heads.probe.random_stream import RandomStream

SCENE_WEIGHTS = {"probe": 34, "crowd": 14, "single": 24, "colour_count": 14, "digit": 14}
"""Per cent of the training scenes that each purpose provides."""
CHART_TURNS = ("tallest", "shortest", "taller", "bar_count")
PAIR_TURNS = ("written_left", "written_larger", "written_order")
SCENE_TURNS = tuple(kind for kind in TURN_TYPES if kind not in CHART_TURNS + PAIR_TURNS)
ANSWERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("existence", "color", "taller", "written_order"), ("yes", "no")),
    **dict.fromkeys(("color_word", "tallest", "shortest"), COLOUR_NAMES),
    **dict.fromkeys(("digit", "written_left", "written_larger"), DIGITS),
    **dict.fromkeys(("color_count", "obj", "general", "super", "bar_count"), ("0", "1", "2", "3", "4", "5")),
    "position": questions.LETTERS,
    "name": KIND_NAMES,
}
"""Answers that a noisy training may be given instead of the right one."""


@dataclass(frozen=True, slots=True)
class TrainingScene:
    """A scene and whether the pointing box is drawn on it."""

    scene: Scene
    with_box: bool


@dataclass(frozen=True, slots=True)
class Turn:
    """One question with its answer. `kind` is one of `TURN_TYPES`."""

    kind: str
    prompt: str
    answer: str


def training_scene(seed: int, index: int, box_share: int) -> TrainingScene:
    """Scene number `index` of the training with `seed`."""
    stream = RandomStream(f"training-{seed}", index)
    purpose = list(SCENE_WEIGHTS)[stream.weighted(list(SCENE_WEIGHTS.values()))]
    if purpose == "probe":
        return TrainingScene(generation.probe_scene(stream), stream.percent(box_share))
    if purpose == "crowd":
        scene = generation.crowd_scene(stream)
    elif purpose == "single":
        scene = generation.single_scene(stream)
    elif purpose == "colour_count":
        count = stream.between(0, generation.LARGEST_COLOUR_COUNT)
        scene = generation.colour_count_scene(stream, stream.choice(COLOUR_NAMES), count)
    else:
        scene = generation.digit_scene(stream, stream.choice(DIGITS))
    return TrainingScene(scene, False)


Picture = TrainingScene | bars.Chart | written.Pair


def training_picture(training: Training, index: int) -> Picture:
    """Picture number `index` of a training: of the kind that its own stream draws by the training's shares."""
    shares = [training.generators.get(name, 0) for name in GENERATORS]
    kind = GENERATORS[RandomStream(f"generator-{training.seed}", index).weighted(shares)]
    if kind == "bars":
        return bars.random_chart(RandomStream(f"training-chart-{training.seed}", index))
    if kind == "written":
        return written.random_pair(RandomStream(f"training-pair-{training.seed}", index), training=True)
    return training_scene(training.seed, index, training.box_share)


def _chart_turn(stream: RandomStream, kind: str, chart: bars.Chart) -> Turn:
    if kind == "tallest":
        question, answer = bars.TALLEST_QUESTION, chart.by_height[-1].colour
    elif kind == "shortest":
        question, answer = bars.SHORTEST_QUESTION, chart.by_height[0].colour
    elif kind == "taller":
        first, second = stream.sample(chart.bars, 2)
        question = bars.taller_question(first.colour, second.colour)
        answer = "yes" if first.level > second.level else "no"
    else:
        question, answer = bars.COUNT_QUESTION, str(len(chart.bars))
    return Turn(kind, questions.full_prompt(question), answer)


def _pair_turn(kind: str, pair: written.Pair) -> Turn:
    if kind == "written_left":
        question, answer = written.LEFT_QUESTION, str(pair.left.value)
    elif kind == "written_larger":
        question, answer = written.LARGER_QUESTION, str(max(pair.left.value, pair.right.value))
    else:
        question, answer = written.ORDER_QUESTION, "yes" if pair.left.value > pair.right.value else "no"
    return Turn(kind, questions.full_prompt(question), answer)


def _scene_turn(stream: RandomStream, kind: str, item: TrainingScene) -> Turn | None:
    """A question of one type about a scene, or None where the scene cannot carry it."""
    scene = item.scene
    kinds = scene.kinds()
    single = sorted(name for name, count in kinds.items() if count == 1)
    digits = [thing.name for thing in scene.things if thing.name in DIGITS]
    choices: Sequence[str] | None = None
    if kind == "existence":
        yes = bool(kinds) and stream.percent(50)
        name = stream.choice(sorted(kinds) if yes else [name for name in KIND_NAMES if name not in kinds])
        question, answer = questions.existence_question(name), "yes" if yes else "no"
    elif kind in ("color", "color_word", "position"):
        if not single:
            return None
        name = stream.choice(single)
        (thing,) = [thing for thing in scene.things if thing.name == name]
        if kind == "position":
            question, answer, choices = questions.position_question(name), questions.LETTERS[thing.quadrant], QUADRANTS
        elif kind == "color_word":
            question, answer = f"What color is the {name}?", thing.colour
        else:
            yes = stream.percent(50)
            colour = thing.colour if yes else stream.choice([c for c in COLOUR_NAMES if c != thing.colour])
            question, answer = questions.color_question(name, colour), "yes" if yes else "no"
    elif kind == "color_count":
        if digits:
            return None
        present = sorted({thing.colour for thing in scene.things})
        colour = stream.choice(present if stream.percent(80) else COLOUR_NAMES)
        question, answer = questions.color_count_question(colour), questions.color_count_answer(scene, colour)
    elif kind == "digit":
        if not digits:
            return None
        question, answer = questions.DIGIT_QUESTION, digits[0]
    elif kind == "name":
        colours = [thing.colour for thing in scene.things]
        lone = [thing for thing in scene.things if colours.count(thing.colour) == 1 and thing.name in KIND_NAMES]
        if item.with_box and scene.pointed is not None:
            question, answer = "What is this?", scene.things[scene.pointed].name
        elif lone:
            thing = stream.choice(lone)
            question, answer = f"What thing is {thing.colour}?", thing.name
        else:
            return None
    elif kind == "obj":
        if not kinds:
            return None
        name = scene.things[scene.pointed].name if scene.pointed is not None else stream.choice(sorted(kinds))
        question, answer = questions.probe_question("obj", name), str(kinds[name])
    else:
        if scene.pointed is None:
            return None
        name = scene.things[scene.pointed].name
        question, answer = questions.probe_question(kind, name), questions.probe_answer(scene)
    if len(answer) > 1 and answer.isdigit() and int(answer) > 12:
        return None
    return Turn(kind, questions.full_prompt(question, choices), answer)


def _turn(stream: RandomStream, kind: str, picture: Picture) -> Turn | None:
    if isinstance(picture, bars.Chart):
        return _chart_turn(stream, kind, picture)
    return _pair_turn(kind, picture) if isinstance(picture, written.Pair) else _scene_turn(stream, kind, picture)


def turns_about(picture: Picture, training: Training, index: int) -> list[Turn]:
    """`training.turns` questions about picture `index`, drawn by the mixture; a noisy training gets some wrong answers."""
    stream = RandomStream(f"turns-{training.seed}", index)
    noise = RandomStream(f"noise-{training.seed}", index)
    kinds: tuple[str, ...] = SCENE_TURNS
    if not isinstance(picture, TrainingScene):
        kinds = CHART_TURNS if isinstance(picture, bars.Chart) else PAIR_TURNS
    weights = [round(100 * training.mixture.get(kind, 0.0)) for kind in kinds]
    turns: list[Turn] = []
    while len(turns) < training.turns:
        turn = _turn(stream, kinds[stream.weighted(weights if any(weights) else [1] * len(kinds))], picture)
        if turn is None:
            continue
        if noise.percent(training.noisy_answers):
            turn = Turn(turn.kind, turn.prompt, noise.choice(ANSWERS[turn.kind]))
        turns.append(turn)
    return turns


@dataclass(frozen=True, slots=True)
class EncodedTurns:
    """Questions as token ids, N scenes x Q turns.

    `ids` int64 [N, Q, T]: the prompt behind the image, the blank and the answer word, padded on the right; `start` int64
    [N, Q]: position of the last prompt token, which predicts the blank; `answer` int64 [N, Q]; `kind` int64 [N, Q] indexes
    `TURN_TYPES`.
    """

    ids: Tensor
    start: Tensor
    answer: Tensor
    kind: Tensor


def encode_turns(turns: Sequence[Sequence[Turn]], processor: LlavaProcessor) -> EncodedTurns:
    """Token ids of the turns, made with the tokenizer and the chat template that inference uses."""
    known: dict[tuple[str, str], list[int]] = {}
    for text, answer in {(turn.prompt, turn.answer) for row in turns for turn in row}:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        ids = processor.tokenizer(f"{prompt} {answer}")["input_ids"]
        image = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        known[text, answer] = ids[ids.index(image) + 1 :]
    width = max(len(ids) for ids in known.values())
    shape = (len(turns), len(turns[0]))
    padded = torch.full((*shape, width), processor.tokenizer.pad_token_id)
    start, word, kind = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
    for n, row in enumerate(turns):
        for q, turn in enumerate(row):
            tokens = known[turn.prompt, turn.answer]
            padded[n, q, : len(tokens)] = torch.tensor(tokens)
            start[n, q], word[n, q] = len(tokens) - 3, tokens[-1]
            kind[n, q] = TURN_TYPES.index(turn.kind)
    return EncodedTurns(padded, start, word, kind)


def draw_picture(picture: Picture) -> Image.Image:
    """A training's picture as a Pillow image: RGB, 336 x 336."""
    if isinstance(picture, TrainingScene):
        return draw_scene(picture.scene, with_box=picture.with_box)
    return Image.fromarray(benchmarks.draw_picture(picture))


def resized_images(pictures: Sequence[Picture], processor: LlavaProcessor) -> Tensor:
    """The drawn pictures after the processor's own resizing, uint8 [N, 3, size, size]; [N, 5, 3, size, size] with tiles."""
    parts = []
    for first in range(0, len(pictures), 64):
        images = [draw_picture(picture) for picture in pictures[first : first + 64]]
        resized = processor.image_processor(images, do_rescale=False, do_normalize=False, return_tensors="np")
        parts.append(torch.from_numpy(np.ascontiguousarray(resized["pixel_values"])).to(torch.uint8))
    return torch.cat(parts)


def normalised(images: Tensor, processor: LlavaProcessor) -> Tensor:
    """`pixel_values` of resized images, float32 [..., 3, size, size]: what the processor does after its resizing."""
    settings = processor.image_processor
    mean, std = (
        torch.tensor(value, dtype=torch.float32, device=images.device)[:, None, None]
        for value in (settings.image_mean, settings.image_std)
    )
    return (images.to(torch.float32) * settings.rescale_factor - mean) / std


def encode_pictures(training: Training, processor: LlavaProcessor) -> tuple[Tensor, EncodedTurns, list[Picture]]:
    """A training's pictures, resized, with their encoded turns."""
    pictures = [training_picture(training, index) for index in range(training.scenes)]
    turns = [turns_about(picture, training, index) for index, picture in enumerate(pictures)]
    return resized_images(pictures, processor), encode_turns(turns, processor), pictures
