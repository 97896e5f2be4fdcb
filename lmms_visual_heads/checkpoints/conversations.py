"""Conversation templates under the names that the original code uses, and which one a checkpoint was trained with.

A template is five strings around questions and answers; it never looks at tokens or images. `infer` reads the model
type, the tokenizer's special tokens and the projector, never only a folder's name.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from typing import Any

from lmms_visual_heads.errors import VisualHeadsError

IMAGE = "<image>"
IMAGE_START, IMAGE_END = "<im_start>", "<im_end>"


@dataclass(frozen=True, slots=True)
class Conversation:
    """Text around questions and answers.

    Attributes
    ----------
    opening : str
        Before the first question: the system prompt and the user's mark.
    ask : str
        After a question, up to where the answer begins.
    before, after : str
        Around an answer.
    again : str
        Before a later question.
    stop : str or None
        A special token that ends an answer, besides the tokenizer's end token.
    """

    opening: str
    ask: str
    before: str
    after: str
    again: str
    stop: str | None = None

    def prompt(self, question: str, answer: str | None = None) -> str:
        """The prompt that asks `question` (placeholders included); with `answer`, the finished exchange."""
        text = self.opening + question + self.ask
        return text if answer is None else text + self.before + answer + self.after

    def chat_template(self, image: str) -> str:
        """The same as a Jinja chat template for transformers, with `image` for every image.

        Content may be a string, which is kept as it is, or typed parts, whose images come first.
        """
        quoted = {name: json.dumps(getattr(self, name)) for name in ("opening", "ask", "before", "after", "again")}
        quoted_image = json.dumps(image)
        return (
            "{%- for message in messages -%}"
            "{%- if message['role'] == 'user' -%}"
            f"{{{{- {quoted['opening']} if loop.first else {quoted['again']} -}}}}"
            "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
            "{%- set images = message['content'] | selectattr('type', 'equalto', 'image') | list -%}"
            "{%- for part in images -%}"
            f"{{{{- {quoted_image} -}}}}{{{{- ' ' if not loop.last else '\\n' -}}}}"
            "{%- endfor -%}"
            "{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}"
            "{%- endif -%}"
            f"{{{{- {quoted['ask']} -}}}}"
            "{%- elif message['role'] == 'assistant' -%}"
            f"{{{{- {quoted['before']} -}}}}"
            "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
            "{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}{%- endif -%}"
            f"{{{{- {quoted['after']} -}}}}"
            "{%- else -%}{{- raise_exception('This template takes user and assistant messages only.') -}}{%- endif -%}"
            "{%- endfor -%}"
        )


_POLITE = "The assistant gives helpful, detailed, and polite answers to the {}'s questions."
_USER = f"A chat between a curious user and an artificial intelligence assistant. {_POLITE.format('user')}"
_HUMAN = f"A chat between a curious human and an artificial intelligence assistant. {_POLITE.format('human')}"
_VISION = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_TAGGED = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able to understand the "
    "visual content that the user provides, and assist the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
_SAFE = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\nIf a question does not make any "
    "sense, or is not factually coherent, explain why instead of answering something not correct. If you don't know the "
    "answer to a question, please don't share false information."
)
_MPT = "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."


def _two(system: str) -> Conversation:
    return Conversation(f"{system} USER: ", " ASSISTANT:", " ", "</s>", "USER: ")


def _single(system: str) -> Conversation:
    return Conversation(f"{system}###Human: ", "###Assistant:", " ", "###", "Human: ")


def _llama_2(system: str) -> Conversation:
    return Conversation(f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n", " [/INST]", " ", " </s>", "<s>[INST] ")


def _chatml(system: str) -> Conversation:
    user, assistant = "<|im_start|>user\n", "<|im_start|>assistant\n"
    opening = f"<|im_start|>system\n{system}<|im_end|>{user}"
    return Conversation(opening, f"<|im_end|>{assistant}", "", "<|im_end|>", user, stop="<|im_end|>")


def _llama_3(system: str) -> Conversation:
    user, assistant = (f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant"))
    opening = f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>{user}"
    return Conversation(opening, f"<|eot_id|>{assistant}", "", "<|eot_id|>", user, stop="<|eot_id|>")


_PLAIN = Conversation("", "\n", "", "\n", "")
CONVERSATIONS: dict[str, Conversation] = {
    "v1": _two(_USER),
    "vicuna_v1": _two(_USER),
    "llava_v1": _two(_HUMAN),
    "v1_mmtag": _two(_TAGGED),
    "llava_v0": _single(_HUMAN),
    "v0_mmtag": _single(_TAGGED),
    "llama_2": _llama_2(_SAFE),
    "llava_llama_2": _llama_2(_VISION),
    "mistral_instruct": Conversation("[INST] ", " [/INST]", " ", " </s>", "[INST] "),
    "chatml_direct": _chatml("Answer the questions."),
    "mistral_direct": _chatml("Answer the questions."),
    "mpt": _chatml(_MPT),
    "llava_llama_3": _llama_3(_VISION),
    "llama3": _llama_3(_USER),
    "llava_phi_3": Conversation(
        f"<|system|>\n{_VISION}<|end|>\n<|user|>\n",
        "<|end|>\n<|assistant|>\n",
        "",
        "<|end|>\n",
        "<|user|>\n",
        stop="<|end|>",
    ),
    "phi3_instruct": Conversation(
        "<|system|>\nYou are a helpful AI assistant.<|end|>\n<|user|>\n",
        "<|end|>\n<|assistant|>\n",
        "",
        "<|end|>",
        "\n<|user|>\n",
        stop="<|end|>",
    ),
    "plain": _PLAIN,
    "v0_plain": _PLAIN,
}
"""Name in the original code (LLaVA, ViP-LLaVA, LLaVA++) -> template."""


def conversation_named(name: str) -> Conversation:
    """The template `name`.

    Raises
    ------
    VisualHeadsError
        For an unknown name; the sentence lists the known ones.
    """
    if name not in CONVERSATIONS:
        near = difflib.get_close_matches(name, CONVERSATIONS, 1)
        hint = f" Did you mean {near[0]}?" if near else " Choose one of them."
        raise VisualHeadsError(f"conversation must be one of {', '.join(CONVERSATIONS)}; got {name!r}.{hint}")
    return CONVERSATIONS[name]


def infer_conversation(model_type: str, tokenizer: Any, has_layer_norm: bool, trained_from: str) -> str:
    """Name of the template that a checkpoint was trained with.

    Parameters
    ----------
    model_type : str
        Of the original config.json, such as "llava_mistral".
    tokenizer : transformers tokenizer
        Its special tokens tell Llama-3 and ChatML models.
    has_layer_norm : bool
        Whether the projector begins with a layer norm over several tower layers (ViP-LLaVA).
    trained_from : str
        The config's `_name_or_path`: Llama-2-chat models have Vicuna's tokenizer and model type.
    """
    if model_type == "llava_phi3":
        return "llava_phi_3"
    if model_type == "llava_mistral":
        return "mistral_instruct"
    known = tokenizer.get_vocab()
    if "<|start_header_id|>" in known:
        return "llava_llama_3"
    if "<|im_start|>" in known:
        return "chatml_direct"
    if has_layer_norm:
        return "llava_v1"
    return "llava_llama_2" if "llama-2" in trained_from.lower() and "chat" in trained_from.lower() else "v1"
