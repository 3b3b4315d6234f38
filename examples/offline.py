"""A model in a script: no server, no log. Run it: python examples/offline.py"""

from app.engine import LLM, SamplingParams

QUESTIONS = ["What is the capital of Italy?", "Name three colours.", "What is 12 times 3?"]

if __name__ == "__main__":
    with LLM("smollm2-135m-instruct") as llm:
        conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
        for answer in llm.chat(conversations, SamplingParams(max_tokens=60), progress=True):
            print(answer.prompt[-1]["content"], "->", answer.text, f"({answer.reason})")
