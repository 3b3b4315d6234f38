/** What a new chat shows: whom one talks to, and a few ways to begin. */

import { current, model } from "../app/store";
import { suggest } from "../app/drafts";
import { focusComposer } from "../app/focus";
import { Mark } from "./icons";

const STARTERS = [
  "What is the capital of France?",
  "Explain in three sentences how a rainbow forms.",
  "Write a Python function that reverses a list, and show how to use it.",
  "Give me five names for a small bakery.",
];

export function Empty() {
  const info = model.value;
  const facts = info && [info.name, `${info.context.toLocaleString("en")} tokens of context`, info.device.toUpperCase()];
  const begin = (text: string) => {
    suggest(current.value, text);
    focusComposer();
  };
  return (
    <div class="empty">
      <Mark class="mark big" />
      <h2>What would you like to know?</h2>
      {facts && <p class="facts">{facts.join(" · ")}</p>}
      <ul class="starters">
        {STARTERS.map((text) => (
          <li key={text}>
            <button type="button" onClick={() => begin(text)}>
              {text}
            </button>
          </li>
        ))}
      </ul>
    </div>
  );
}
