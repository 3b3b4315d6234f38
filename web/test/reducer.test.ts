import assert from "node:assert/strict";
import { test } from "node:test";
import type { Item } from "../src/log/protocol";
import { apply, fold } from "../src/log/reducer";
import { deriveTitle, empty, type ThreadState } from "../src/log/state";
import { entries, isActive, stepTree } from "../src/app/view";

/** Items with versions, seqs and times of their own. */
function log(...events: (Pick<Item, "type" | "data"> & Partial<Item>)[]): Item[] {
  let v = 0;
  return events.map((event) => {
    const item = { v: v + 1, seq: 100 + v, time: (v + 1) * 1e9, actor: "x", ...event };
    v = item.to ?? item.v;
    return item;
  });
}

function state(...events: Parameters<typeof log>): ThreadState {
  const made = empty("t");
  fold(made, log(...events));
  return made;
}

const ASK = { type: "message.posted", data: { message: "m1", role: "user", content: "Hello  there" } };
const RUN = { type: "run.started", run: "r1", data: { run: "r1", hook: "on_message", node: "n", message: "m1" } };
const QUEUED = { type: "request.queued", run: "r1", data: { request: "q1", params: {} } };
const BOUND = { type: "message.started", run: "r1", data: { message: "m2", request: "q1" } };
const CLAIMED = { type: "request.claimed", data: { request: "q1", epoch: 1, worker: "w" } };
const STARTED = { type: "request.started", data: { request: "q1", epoch: 1, model: "m", weights: "x", prompt_tokens: 3 } };
const tokens = (batch: number, text: string, more = {}) => ({
  type: "tokens.generated",
  data: { request: "q1", epoch: 1, batch, index: batch, tokens: [batch], text },
  ...more,
});
const BEGUN = [ASK, RUN, QUEUED, BOUND, CLAIMED, STARTED];

test("a bound message has its request's text and ends with it", () => {
  const made = state(...BEGUN, tokens(0, "Par"), tokens(1, "is"));
  assert.equal(made.messages[1]!.content, "Paris");
  assert.equal(made.messages[1]!.status, "streaming");
  fold(made, [{ ...log(tokens(0, ""))[0]!, v: 9, type: "request.cancelled", data: { request: "q1" } }]);
  assert.equal(made.messages[1]!.status, "stopped");
  assert.equal(made.messages[1]!.content, "Paris");
});

test("merged token batches count for all they cover, repeated ones for nothing", () => {
  const made = state(...BEGUN, tokens(0, "a"), tokens(1, "bcd", { to: 10 }), tokens(1, "bcd"), tokens(4, "e"));
  assert.equal(made.requests[0]!.batches, 5);
  assert.equal(made.messages[1]!.content, "abcde");
});

test("only the first text of a message changes the structure", () => {
  const made = state(...BEGUN);
  const [first, second] = log(tokens(0, "a"), tokens(1, "b"));
  assert.equal(apply(made, first!), "structure");
  assert.equal(apply(made, second!), "text");
});

test("unknown types and unknown ids move only the position", () => {
  const made = state({ type: "thread.sparkled", data: {} }, { type: "message.delta", data: { message: "?", text: "x" } });
  assert.equal(made.version, 2);
  assert.deepEqual(made.messages, []);
});

test("a stopped run closes its own messages and steps, and leaves requests to their end", () => {
  const made = state(
    ...BEGUN,
    { type: "message.started", run: "r1", data: { message: "m3" } },
    { type: "step.started", run: "r1", data: { step: "s1", name: "look" } },
    { type: "run.stopped", run: "r1", data: { run: "r1" } },
  );
  assert.deepEqual(made.messages.map((message) => message.status), ["done", "streaming", "stopped"]);
  assert.equal(made.steps[0]!.status, "stopped");
  assert.ok(isActive(made));
});

test("steps form a tree, orphans stand at the top", () => {
  const step = (id: string, parent: string | null) => ({ type: "step.started", data: { step: id, name: id, parent } });
  const made = state(step("a", null), step("b", "a"), step("c", "gone"));
  const tree = stepTree(made.steps);
  assert.deepEqual(tree.map((node) => node.step.id), ["a", "c"]);
  assert.deepEqual(tree[0]!.children.map((node) => node.step.id), ["b"]);
});

test("entries: steps stand between question and answer, waiting and ends behind", () => {
  const kinds = (made: ThreadState) => entries(made).map((entry) => (entry.kind === "message" ? entry.message.id : entry.kind));
  const step = { type: "step.started", run: "r1", data: { step: "s1", name: "look" } };
  assert.deepEqual(kinds(state(ASK, RUN)), ["m1", "waiting"]);
  assert.deepEqual(kinds(state(ASK, RUN, step)), ["m1", "activity"]);
  assert.deepEqual(kinds(state(ASK, RUN, step, QUEUED, BOUND, CLAIMED, STARTED, tokens(0, "a"))), ["m1", "activity", "m2"]);
  const failed = { type: "run.failed", run: "r1", data: { run: "r1", error: { kind: "E", message: "no" } } };
  assert.deepEqual(kinds(state(ASK, RUN, failed)), ["m1", "ended"]);
});

test("titles are cut at a word", () => {
  assert.equal(deriveTitle("  Hello \n there "), "Hello there");
  assert.equal(deriveTitle(" \n"), null);
  assert.equal(deriveTitle("x".repeat(80)), `${"x".repeat(60)}…`);
  assert.equal(deriveTitle(`${"word ".repeat(20)}`), `${"word ".repeat(12).trim()}…`);
});
