"""From what a request says to token ids, with the roles of a chat as spans where the template shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers.cli.serving.utils import BaseHandler, Modality

from moeworks.engines.transformers.tokens import Prepared
from moeworks.errors import BadData, Unsupported
from moeworks.examples import Example, Message
from moeworks.serve.fields import ChatFields, CompletionFields

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine
    from moeworks.trace.requests import TokenSpan

__all__ = ["chat_prompt", "completion_prompts"]

TEXT_PARTS = ("text", "input_text", "output_text")
RESERVED = frozenset(
    {
        *("chat_template", "tokenize", "tools", "documents", "add_generation_prompt", "continue_final_message"),
        *("padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        *("tokenizer_kwargs", "conversation", "load_audio_from_video"),
    }
)


def chat_prompt(engine: TransformersEngine, fields: ChatFields, *, roles: bool) -> Prepared:
    """Return the prompt of a chat, the model's template applied.

    Args:
        engine: the engine.
        fields: the request.
        roles: whether a plan asks who said a token, so that roles must be told apart.

    Raises:
        BadData: messages, tools or template arguments that the template cannot take.
        Unsupported: there is no template, or roles are wanted and cannot be told.
    """
    if not engine.tokenizer.chat_template:
        raise Unsupported("this model's tokenizer has no chat template; use /v1/completions.")
    extra = fields.chat_template_kwargs or {}
    if reserved := sorted(RESERVED & extra.keys()):
        raise BadData(f"chat_template_kwargs: {', '.join(reserved)} cannot be set by a request.")
    messages = _messages(fields.messages)
    plain = _plain(messages) if not (fields.tools or extra) else None
    problem = "a chat with tools, template arguments or an assistant's last turn does not tell its roles"
    if plain is not None:
        try:
            tokens, _, spans = engine.reader.encode(Example(messages=plain))
            return _prepared(tokens, spans, repr(fields.messages))
        except Unsupported as error:  # roles are not shown as they are written
            problem = str(error)
        except Exception as error:
            raise BadData(f"messages: the model's chat template refuses them: {_first_line(error)}.") from None
    if roles:
        raise Unsupported(f"the plan asks who said a token, which cannot be told here: {problem}")
    try:
        encoded = engine.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tools=fields.tools, tokenize=True, return_dict=True, **extra
        )
    except Exception as error:
        raise BadData(f"messages: the model's chat template refuses them: {_first_line(error)}.") from None
    return _prepared(encoded["input_ids"], (), repr(fields.messages))


def completion_prompts(engine: TransformersEngine, fields: CompletionFields) -> tuple[Prepared, ...]:
    """Return the prompts of a completion: texts, or token ids as they are.

    Raises:
        BadData: a prompt has no tokens, or one that the model does not know.
    """
    known = engine.model.get_input_embeddings().num_embeddings
    prompts = []
    for number, prompt in enumerate(fields.prompts):
        if isinstance(prompt, str):
            tokens = engine.reader.encode(Example(text=prompt))[0] if prompt else []
            if not prompt and engine.tokenizer.bos_token_id is not None:
                tokens = [engine.tokenizer.bos_token_id]
        else:
            tokens = list(prompt)
            if (largest := max(tokens)) >= known:
                raise BadData(f"prompt: there is no token {largest}; the model knows {known} tokens.")
        if not tokens:
            raise BadData("prompt: it has no tokens; give a text.")
        prompts.append(_prepared(tokens, (), repr(prompt), number))
    return tuple(prompts)


def _prepared(tokens: Sequence[int], spans: Sequence[TokenSpan], content: str, number: int = 0) -> Prepared:
    return Prepared(
        number=number,
        tokens=tuple(tokens),
        prompt_tokens=len(tokens),
        spans=tuple(spans),
        labels={},
        document=str(number),
        content=content,
        truncated=0,
    )


def _messages(given: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages as transformers' own server hands them to a template."""
    for number, message in enumerate(given, 1):
        content = message.get("content")
        if not isinstance(message.get("role"), str):
            raise BadData(f"messages: message {number} has no role.")
        if content is not None and not isinstance(content, (str, list)):
            raise BadData(f"messages: the content of message {number} is neither text nor a list of parts.")
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in TEXT_PARTS:
                raise BadData(f"messages: message {number} has a part that is not text, which this server cannot take.")
            if not isinstance(part.get("text"), str):
                raise BadData(f"messages: a text part of message {number} has no text.")
    try:
        return list(BaseHandler.get_processor_inputs_from_messages([dict(m) for m in given], Modality.LLM))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadData(
            f"messages: they are not of the OpenAI form: {type(error).__name__} {_first_line(error)}."
        ) from None


def _plain(messages: Sequence[dict[str, Any]]) -> tuple[Message, ...] | None:
    """Return the messages where all are text by somebody else than the model's next turn."""
    if any(message.keys() != {"role", "content"} or not message["content"] for message in messages):
        return None
    if messages[-1]["role"] == "assistant":
        return None
    return tuple(Message(role=message["role"], content=message["content"]) for message in messages)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
