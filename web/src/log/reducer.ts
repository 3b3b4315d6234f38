/**
 * state = fold(items): the one reducer, for live events, after a reload, and for replay.
 *
 * Pure but for changing `state` in place. It comes to the same state as app/projections/fold.py
 * (tests/web holds the two against each other). Nothing here refuses an odd history: an event of
 * an unknown type, about an unknown id, or illegal where it stands moves only the position.
 */

import { endMessage, MESSAGE_AFTER, type Change, type Context, type Handler } from "./context";
import { Payload } from "./payload";
import type { Item } from "./protocol";
import { onRequest } from "./requests";
import {
  deriveTitle,
  Index,
  type ErrorInfo,
  type MessageState,
  type MessageStatus,
  type RunState,
  type Status,
  type StepState,
  type ThreadState,
} from "./state";

export type { Change } from "./context";

/** Fold one item into the state. */
export function apply(state: ThreadState, item: Item): Change {
  if (state.version === 0) state.created = item.time;
  state.version = item.to ?? item.v;
  state.seq = item.seq;
  state.updated = item.time;
  const handler = HANDLERS[item.type];
  if (!handler) return "text";
  return handler({ state, index: Index.of(state), item, data: new Payload(item.data) }) ?? "structure";
}

/** Fold many items into the state. */
export function fold(state: ThreadState, items: Iterable<Item>): Change {
  let change: Change = "text";
  for (const item of items) if (apply(state, item) === "structure") change = "structure";
  return change;
}

// ------------------------------------------------------------------------------- messages

function addMessage({ state, index, item, data }: Context, fields: Partial<MessageState>): MessageState {
  const message: MessageState = {
    id: data.text("message"),
    role: data.text("role", "assistant"),
    content: "",
    author: data.maybe("author"),
    status: "done",
    level: data.text("level", "info"),
    parent: data.maybe("parent"),
    step: data.maybe("step"),
    run: item.run ?? null,
    request: data.maybe("request"),
    version: item.v,
    created: item.time,
    updated: item.time,
    first_token: null,
    ended: null,
    edited: false,
    feedback: null,
    metadata: data.map("metadata"),
    ...fields,
  };
  state.messages.push(message);
  index.messages.set(message.id, message);
  return message;
}

function postMessage(context: Context): void {
  const { state, index, item, data } = context;
  if (index.messages.has(data.text("message"))) return;
  const content = data.text("content");
  addMessage(context, { content, first_token: item.time, ended: item.time });
  if (state.title === null && data.text("role") === "user") state.title = deriveTitle(content);
}

function startMessage(context: Context): void {
  const { index, item, data } = context;
  if (index.messages.has(data.text("message"))) return;
  const message = addMessage(context, { status: "streaming" });
  if (message.request === null) return;
  index.bind(message.request, message);
  const request = index.requests.get(message.request);
  if (!request) return;
  message.content = request.text;
  message.first_token = request.first_token;
  const status = MESSAGE_AFTER[request.state];
  if (status) endMessage(message, status, item);
}

/** A handler for events about a message that is still there. */
function onMessage(change: (message: MessageState, context: Context) => Change | void): Handler {
  return (context) => {
    const message = context.index.messages.get(context.data.text("message"));
    return message && message.status !== "removed" ? change(message, context) : "text";
  };
}

function addDelta(message: MessageState, { item, data }: Context): Change {
  if (message.request !== null) return "text";
  const first = message.first_token === null;
  message.first_token ??= item.time;
  message.content += data.text("text");
  message.updated = item.time;
  return first ? "structure" : "text";
}

// ---------------------------------------------------------------------------- runs, steps

function startRun({ state, index, item, data }: Context): void {
  if (index.runs.has(data.text("run"))) return;
  const run: RunState = {
    id: data.text("run"),
    hook: data.text("hook"),
    node: data.text("node"),
    message: data.maybe("message"),
    status: "running",
    resumable: data.flag("resumable"),
    version: item.v,
    started: item.time,
    ended: null,
    error: null,
    reason: null,
  };
  state.runs.push(run);
  index.runs.set(run.id, run);
}

/** What began after the run did: all that it can have begun. */
function since<T extends { version: number }>(list: T[], run: RunState): T[] {
  return list.slice(1 + list.findLastIndex((entry) => entry.version < run.version));
}

/** A run is over; so is everything it left open that has no request of its own to wait for. */
function endRun(status: Status, messages: MessageStatus): Handler {
  return ({ state, index, item, data }) => {
    const run = index.runs.get(data.text("run"));
    if (!run || run.ended !== null) return;
    run.status = status;
    run.ended = item.time;
    run.error = data.any<ErrorInfo>("error");
    run.reason = data.maybe("reason");
    for (const message of since(state.messages, run)) {
      const orphan = message.request === null || !index.requests.has(message.request);
      if (message.run === run.id && message.status === "streaming" && orphan) endMessage(message, messages, item);
    }
    for (const step of since(state.steps, run)) {
      if (step.run !== run.id || step.status !== "running") continue;
      step.status = status;
      step.ended = item.time;
    }
  };
}

function resumeRun({ index, data }: Context): void {
  const run = index.runs.get(data.text("run"));
  if (run && run.ended === null) run.node = data.text("node");
}

function startStep({ state, index, item, data }: Context): void {
  if (index.steps.has(data.text("step"))) return;
  const step: StepState = {
    id: data.text("step"),
    name: data.text("name"),
    kind: data.text("kind", "undefined"),
    run: item.run ?? null,
    parent: data.maybe("parent"),
    request: data.maybe("request"),
    input: data.any("input"),
    output: null,
    status: "running",
    version: item.v,
    started: item.time,
    ended: null,
    error: null,
  };
  state.steps.push(step);
  index.steps.set(step.id, step);
}

/** A handler for events about a step that runs. */
function onStep(change: (step: StepState, context: Context) => void): Handler {
  return (context) => {
    const step = context.index.steps.get(context.data.text("step"));
    if (!step || step.status !== "running") return "text";
    return change(step, context), "structure";
  };
}

function endStep(status: Status): Handler {
  return onStep((step, { item, data }) => {
    step.status = status;
    step.ended = item.time;
    step.error = data.any<ErrorInfo>("error");
    step.output = data.any("output") ?? step.output;
  });
}

// ----------------------------------------------------------------------------- all of them

const HANDLERS: Record<string, Handler> = {
  "thread.created": ({ state, data }) => {
    if (state.owner !== null) return;
    state.owner = data.text("owner");
    state.metadata = data.map("metadata");
    state.title = data.maybe("title") || state.title;
  },
  "thread.renamed": ({ state, data }) => void (state.title = data.text("title")),
  "thread.forked": ({ state, data }) => {
    state.source = data.text("source");
    state.source_version = data.number("version");
  },
  "thread.shared": ({ state, data }) => void (state.shared = data.flag("shared")),
  "thread.settings_changed": ({ state, data }) => void (state.settings = data.map("settings")),
  "thread.metadata_changed": ({ state, data }) => void (state.metadata = data.map("metadata")),
  "thread.deleted": ({ state }) => void (state.deleted = true),
  "session.changed": ({ state, data }) => {
    const removed = new Set(data.list<string>("removed"));
    const kept = Object.entries(state.session).filter(([key]) => !removed.has(key));
    state.session = { ...Object.fromEntries(kept), ...data.map("values") };
    return "text";
  },

  "message.posted": postMessage,
  "message.started": startMessage,
  "message.delta": onMessage(addDelta),
  "message.completed": onMessage((message, { item, data }) => {
    message.content = data.maybe("content") ?? message.content;
    // What a stopped run still writes is its clean-up: the message stays stopped.
    endMessage(message, message.status === "streaming" ? "done" : message.status, item);
  }),
  "message.edited": onMessage((message, { item, data }) => {
    message.content = data.text("content");
    message.edited = true;
    message.updated = item.time;
    message.metadata = { ...message.metadata, ...data.map("metadata") };
  }),
  "message.removed": onMessage((message, { item }) => {
    message.content = "";
    endMessage(message, "removed", item);
  }),
  "message.feedback": ({ index, data }) => {
    const message = index.messages.get(data.text("message"));
    const value = data.number("value");
    if (message) message.feedback = value ? { value, comment: data.maybe("comment") } : null;
  },

  "run.started": startRun,
  "run.completed": endRun("completed", "done"),
  "run.failed": endRun("failed", "failed"),
  "run.stopped": endRun("stopped", "stopped"),
  "run.interrupted": endRun("interrupted", "interrupted"),
  "run.resumed": resumeRun,

  "step.started": startStep,
  "step.delta": onStep((step, { data }) => {
    step.output = (typeof step.output === "string" ? step.output : "") + data.text("text");
  }),
  "step.completed": endStep("completed"),
  "step.failed": endStep("failed"),

  ...onRequest,
};
