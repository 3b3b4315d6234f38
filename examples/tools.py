"""Steps: a calculator and a unit table as tools, nested, sync and async, one of them failing.

Ask "3 * (4 + 5) km" or "12 parsecs". No model needed.
"""

import ast
import asyncio
import operator
from collections.abc import Callable

from app import Message, Step, make_async, on_message, on_stop, step, user_session

OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv
}  # fmt: skip
METRES = {"m": 1.0, "km": 1000.0, "mi": 1609.344, "ft": 0.3048}


@step(type="tool")
def calculate(expression: str) -> float:
    """A sync step: its arguments and its result are recorded."""

    def value(node: ast.AST) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.BinOp(left=left, op=op, right=right):
                return OPERATORS[type(op)](value(left), value(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
        raise ValueError(f"cannot calculate {ast.unparse(node)}")

    return value(ast.parse(expression, mode="eval").body)


@step(type="retrieval")
async def look_up(unit: str) -> float:
    await asyncio.sleep(0.2)  # as a real lookup would take
    return METRES[unit]  # an unknown unit raises: the step is shown as failed


@on_message
async def main(message: Message) -> None:
    expression, _, unit = message.content.strip().rpartition(" ")
    async with Step(name="convert", type="run") as s:
        s.input = {"expression": expression, "unit": unit}
        try:
            # Both are children of "convert"; the sync one runs in a thread.
            number, factor = await asyncio.gather(make_async(calculate)(expression), look_up(unit))
        except (KeyError, ValueError, SyntaxError) as error:
            s.output = f"gave up: {error!r}"
            await Message(f"I do not know how to convert that: {error}").send()
            return
        s.output = number * factor
    asked = user_session.get("asked", 0) + 1  # kept in the log, so it survives a restart
    user_session.set("asked", asked)
    await Message(f"{message.content} = **{number * factor:g} m** (question {asked})").send()


@on_stop
async def stopped() -> None:
    await Message("All right, stopped.").send()
