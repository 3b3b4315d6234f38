import assert from "node:assert/strict";
import { beforeEach, test, type TestContext } from "node:test";
import { Outbox } from "../src/log/outbox";
import type { Item } from "../src/log/protocol";
import { Connection, type Link } from "../src/log/socket";

type Frame = Record<string, unknown> & { t: string };

/** The browser's end of a wire whose other end is the test. */
class Wire {
  static readonly CONNECTING = 0;
  static readonly OPEN = 1;
  static all: Wire[] = [];
  readyState = 0;
  sent: Frame[] = [];
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: string }) => void) | null = null;
  onclose: ((event: { code: number }) => void) | null = null;

  constructor(readonly url: string) {
    Wire.all.push(this);
  }
  send(data: string): void {
    this.sent.push(JSON.parse(data) as Frame);
  }
  close(): void {
    this.readyState = 3;
  }
  accept(): void {
    this.readyState = 1;
    this.onopen!();
    this.deliver({ t: "welcome", protocol: "everlog.v1", incarnation: "i", version: "1", user: { id: "u" }, model: null });
  }
  deliver(frame: Frame): void {
    this.onmessage!({ data: JSON.stringify(frame) });
  }
  lose(code = 1006): void {
    this.readyState = 3;
    this.onclose!({ code });
  }
  types(): string[] {
    return this.sent.map((frame) => frame.t);
  }
}

const links: Link[] = [];

function connect(context: TestContext): Connection {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const outbox = new Outbox({ getItem: () => null, setItem: () => {} });
  const ignore = () => {};
  const listener = { link: (link: Link) => void links.push(link), welcome: ignore, changed: ignore, frame: ignore };
  const connection = new Connection("ws://host/ws", outbox, listener);
  connection.start();
  return connection;
}

const wire = () => Wire.all.at(-1)!;

function events(first: number, last: number): Frame {
  const items = Array.from({ length: last - first + 1 }, (_, index): Item => {
    const v = first + index;
    return { v, seq: v, type: "thread.renamed", time: v, actor: "x", data: { title: `t${v}` } };
  });
  return { t: "events", thread: "a", first, last, items };
}

beforeEach(() => {
  Wire.all = [];
  links.length = 0;
  const globals = { WebSocket: Wire, addEventListener: () => {}, document: { addEventListener: () => {}, visibilityState: "visible" } };
  for (const [name, value] of Object.entries(globals)) {
    Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
  }
  Object.defineProperty(globalThis, "navigator", { value: { onLine: true }, configurable: true });
});

test("a hole opens the thread again, once, after what is known", (context) => {
  const connection = connect(context);
  const replica = connection.follow("a");
  wire().accept();
  wire().deliver(events(1, 2));
  wire().deliver(events(4, 4));
  wire().deliver(events(5, 5));
  const opens = wire().sent.filter((frame) => frame.t === "open");
  assert.deepEqual(opens.map((frame) => frame.after), [0, 2]);
  wire().deliver(events(3, 5));
  assert.equal(replica.cursor, 5);
  assert.equal(replica.state.title, "t5");
});

test("after a loss it goes on where it was, and sends unacknowledged commands again", (context) => {
  const connection = connect(context);
  connection.follow("a");
  wire().accept();
  wire().deliver(events(1, 3));
  for (const id of ["c1", "c2"]) connection.command({ t: "stop", id, thread: "a" });
  wire().deliver({ t: "ack", id: "c1", thread: "a", version: 3, seq: 3 });
  wire().lose();
  assert.equal(links.at(-1)!.is, "lost");
  context.mock.timers.tick(300);
  assert.equal(Wire.all.length, 2);
  wire().accept();
  assert.deepEqual(wire().sent.slice(1), [
    { t: "open", thread: "a", after: 3, incarnation: "i" },
    { t: "stop", id: "c2", thread: "a" },
  ]);
});

test("what a draining server refuses is kept for the next one, which is tried at once", (context) => {
  const connection = connect(context);
  wire().accept();
  connection.command({ t: "stop", id: "c1", thread: "a" });
  wire().deliver({ t: "refuse", id: "c1", code: "draining", message: "bye" });
  wire().lose(1012);
  context.mock.timers.tick(100);
  wire().accept();
  assert.deepEqual(wire().types(), ["hello", "stop"]);
});

test("a connection that answers no ping is given up", (context) => {
  connect(context);
  wire().accept();
  context.mock.timers.tick(15_000);
  assert.deepEqual(wire().types(), ["hello", "ping"]);
  wire().deliver({ t: "pong", n: 1, heads: {} });
  context.mock.timers.tick(15_000);
  assert.equal(Wire.all.length, 1);
  context.mock.timers.tick(10_000);
  context.mock.timers.tick(300);
  assert.equal(Wire.all.length, 2);
});

test("a thread that stays behind the head of a pong is opened again", (context) => {
  const connection = connect(context);
  connection.follow("a");
  wire().accept();
  wire().deliver(events(1, 3));
  wire().deliver({ t: "pong", n: 1, heads: { a: 5 } });
  wire().deliver(events(4, 5));
  context.mock.timers.tick(3000);
  assert.equal(wire().types().filter((type) => type === "open").length, 1);
  wire().deliver({ t: "pong", n: 2, heads: { a: 6 } });
  context.mock.timers.tick(3000);
  assert.equal(wire().sent.at(-1)!.after, 5);
});

test("a reset replaces everything", (context) => {
  const replica = connect(context).follow("a");
  wire().accept();
  wire().deliver(events(1, 9));
  wire().deliver({ t: "reset", thread: "a", version: 4, reason: "incarnation", state: { ...replica.state, title: "other", version: 4 } });
  wire().deliver(events(5, 5));
  assert.equal(replica.cursor, 5);
  assert.equal(replica.state.title, "t5");
});

test("a newer protocol is not tried again", (context) => {
  connect(context);
  wire().lose(4426);
  context.mock.timers.tick(60_000);
  assert.equal(Wire.all.length, 1);
  assert.equal(links.at(-1)!.is, "refused");
});
