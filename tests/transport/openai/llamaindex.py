"""Uses a server as LlamaIndex does; prints what came as JSON. Run by test_clients."""

from __future__ import annotations

import json
import sys

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike


def get_weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"It is sunny in {city}."


def main(url: str, model: str) -> None:
    """Complete, chat, stream and call."""
    common = {
        "model": model,
        "api_base": url,
        "api_key": "none",
        "context_window": 8192,
        "temperature": 0.0,
        "max_tokens": 20,
    }
    plain = OpenAILike(**common)
    chat = OpenAILike(**common, is_chat_model=True)
    tools = OpenAILike(**common, is_chat_model=True, is_function_calling_model=True)
    question = "What is the capital of France?"
    message = [ChatMessage(role="user", content=question)]
    called = tools.chat_with_tools(
        [FunctionTool.from_defaults(get_weather)],
        user_msg="How is the weather in Paris?",
        tool_required=True,
        max_tokens=60,
    )
    calls = tools.get_tool_calls_from_response(called)
    found = {
        "complete": plain.complete("The capital of France is").text,
        "stream_complete": [piece.delta for piece in plain.stream_complete("1, 2, 3,")],
        "chat": chat.chat(message).message.content,
        "stream_chat": [piece.delta for piece in chat.stream_chat(message)],
        "calls": [[call.tool_name, call.tool_kwargs] for call in calls],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
