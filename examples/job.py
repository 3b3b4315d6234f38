"""A job that takes long: kill the server in the middle of it, start it again, and it goes on.

Send "20" and watch it look for twenty large primes. No model needed.
"""

import asyncio

from app import Message, context, make_async, on_message, step, user_session

FIRST = 10**12


@step(type="tool")
def next_prime(after: int) -> int:
    number = after + 1
    while any(number % divisor == 0 for divisor in range(2, int(number**0.5) + 1)):
        number += 1
    return number


@on_message(resumable=True)  # after a crash this is called again, with the same message
async def main(message: Message) -> None:
    if not message.content.isdigit():
        await Message("How many primes? Send a number.").send()
        return
    primes: list[int] = []
    if context.resumed:
        primes = user_session.get("primes", [])
        await Message("The server was away; going on.").send()
    while len(primes) < int(message.content):
        found = await make_async(next_prime)(max(primes, default=FIRST))
        primes.append(found)
        user_session.set("primes", primes)
        # In one append with the change of the session: neither is in the log without the other.
        await Message(f"{len(primes)} of {message.content}: {found:,}").send()
        await asyncio.sleep(0.5)
    await Message("Done.").send()
