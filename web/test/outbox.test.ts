import assert from "node:assert/strict";
import { test } from "node:test";
import { backoff } from "../src/log/backoff";
import { Outbox } from "../src/log/outbox";

function storage(limit = 10_000) {
  const values = new Map<string, string>();
  return {
    getItem: (key: string) => values.get(key) ?? null,
    setItem(key: string, value: string) {
      if (value.length > limit) throw new Error("full");
      values.set(key, value);
    },
  };
}

const stop = (id: string) => ({ t: "stop" as const, id, thread: "a" });

test("what is not settled outlives the page, in order", () => {
  const area = storage();
  const before = new Outbox(area);
  for (const id of ["1", "2", "3"]) before.add(stop(id));
  assert.equal(before.settle("2")?.id, "2");
  assert.equal(before.settle("2"), undefined);
  assert.deepEqual(new Outbox(area).all.map((command) => command.id), ["1", "3"]);
});

test("a full or damaged storage costs only the memory over reloads", () => {
  const full = new Outbox(storage(4));
  full.add(stop("1"));
  assert.equal(full.all.length, 1);
  const damaged = storage();
  damaged.setItem("everlog:outbox", "{]");
  assert.deepEqual(new Outbox(damaged).all, []);
});

test("waiting grows to ten seconds and is never nothing", () => {
  assert.equal(backoff(1, 0), 125);
  assert.equal(backoff(1, 1), 250);
  assert.equal(backoff(3, 1), 1000);
  assert.equal(backoff(50, 1), 10_000);
  assert.equal(backoff(50, 0), 5000);
});
