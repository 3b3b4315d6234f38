import assert from "node:assert/strict";
import { test } from "node:test";
import { uuid7 } from "../src/log/uuid7";

const FORM = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

test("ids are UUIDs of version 7 with the time in front", () => {
  const id = uuid7();
  assert.match(id, FORM);
  const time = Number.parseInt(id.replaceAll("-", "").slice(0, 12), 16);
  assert.ok(Math.abs(time - Date.now()) < 1000);
});

test("ids made later sort later, also many in one millisecond and when the clock goes back", () => {
  const now = Date.now() + 10_000;
  const ids = Array.from({ length: 10_000 }, () => uuid7(now));
  ids.push(uuid7(now - 5000));
  assert.deepEqual(ids, [...ids].sort());
  assert.equal(new Set(ids).size, ids.length);
  for (const id of ids) assert.match(id, FORM);
});
