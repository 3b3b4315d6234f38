// Folds streams of items, given as JSON on standard input: the other half of tests/web/test_fold.py.
import { readFileSync } from "node:fs";
import type { Item } from "../src/log/protocol";
import { fold } from "../src/log/reducer";
import { empty } from "../src/log/state";

const cases = JSON.parse(readFileSync(0, "utf8")) as Item[][];
const states = cases.map((items) => {
  const state = empty("t");
  fold(state, items);
  return state;
});
process.stdout.write(JSON.stringify(states));
