import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { decide } from "../src/log/cursor";

interface Case {
  name: string;
  cursor: number;
  frame: Parameters<typeof decide>[1];
  expect: string;
  cursor_after: number;
}

// The same cases hold for the terminal client; they are kept with the server's tests.
const folder = join(process.env.EVERLOG_WEB!, "..", "tests", "transport", "conformance");
const files = existsSync(folder) ? readdirSync(folder).filter((name) => /^client.*\.json$/.test(name)) : [];
for (const file of files) {
  for (const { name, cursor, frame, expect, cursor_after } of JSON.parse(readFileSync(join(folder, file), "utf8")) as Case[]) {
    test(`${file}: ${name}`, () => {
      const decision = decide(cursor, frame);
      assert.equal(decision.verdict, expect);
      assert.equal(decision.cursor, cursor_after);
    });
  }
}

test("live ahead of the cursor means that something is missing", () => {
  assert.deepEqual(decide(4, { t: "live", thread: "a", version: 5 }), { verdict: "reopen", cursor: 4 });
  assert.deepEqual(decide(5, { t: "live", thread: "a", version: 5 }), { verdict: "ignore", cursor: 5 });
});

test("a pong tells only the thread it names", () => {
  const frame = { t: "pong" as const, n: 1, heads: { a: 9 } };
  assert.equal(decide(8, frame, "a").verdict, "reopen");
  assert.equal(decide(9, frame, "a").verdict, "ignore");
  assert.equal(decide(8, frame, "b").verdict, "ignore");
});
