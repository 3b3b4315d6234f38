"""A chat with the model. Run it: everlog serve examples/chat.py"""

from app import Message, history, llm, on_message

SYSTEM = {"role": "system", "content": "You are a friendly assistant. Answer in a few sentences."}


@on_message
async def main(message: Message) -> None:
    # The conversation so far comes from the log, so it is there after a restart as well.
    prompt = [SYSTEM, *await history(limit=20)]
    # Bound to the message, the model's tokens are stored once and streamed as they are committed.
    await Message().stream_from(llm.chat(prompt, temperature=0.7, max_tokens=400))
