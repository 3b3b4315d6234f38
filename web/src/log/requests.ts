/** Engine requests in the reducer: the state machine of app/events/lifecycle.py, and their text. */

import { endMessage, MESSAGE_AFTER, type Change, type Context, type Handler } from "./context";
import type { Index, MessageState, RequestState, RequestStatus, Timings, Usage } from "./state";

type Moves = Partial<Record<RequestStatus, RequestStatus>>;

function all(from: RequestStatus[], to: RequestStatus): Moves {
  return Object.fromEntries(from.map((state) => [state, to])) as Moves;
}

/** Event type -> state before -> state after. */
const TRANSITIONS: Record<string, Moves> = {
  "request.claimed": { queued: "claimed" },
  "request.started": { claimed: "running" },
  "tokens.generated": { running: "running" },
  "request.embedded": { running: "running" },
  "request.preempted": { running: "preempted" },
  "request.resumed": { preempted: "running" },
  "request.finished": { running: "finished" },
  "request.failed": all(["queued", "claimed", "running", "preempted"], "failed"),
  "request.cancelled": all(["queued", "claimed", "running", "preempted"], "cancelled"),
  "request.abandoned": all(["claimed", "running", "preempted"], "queued"),
};

/** Names of tools in OpenAI's form; what has none is left out. */
function namesOf(tools: { function?: { name?: unknown } }[]): string[] {
  return tools.map((tool) => tool.function?.name).filter((name) => typeof name === "string");
}

function queueRequest({ state, index, item, data }: Context): void {
  if (index.requests.has(data.text("request"))) return;
  const request: RequestState = {
    id: data.text("request"),
    state: "queued",
    epoch: 0,
    run: item.run ?? null,
    model: data.maybe("model"),
    worker: null,
    params: data.map("params"),
    tools: namesOf(data.list("tools")),
    forced: data.map("metadata").forced === true,
    embeds: data.any<object>("embed") !== null,
    dimensions: null,
    text: "",
    tokens: [],
    batches: 0,
    prompt_tokens: 0,
    waited_for: [],
    preemptions: [],
    reason: null,
    usage: null,
    timings: null,
    code: null,
    message: null,
    version: item.v,
    queued: item.time,
    claimed: null,
    started: null,
    first_token: null,
    ended: null,
  };
  state.requests.push(request);
  index.requests.set(request.id, request);
}

/** A handler for events that are legal in the state the request is in. */
function moving(change: (request: RequestState, context: Context) => Change | void): Handler {
  return (context) => {
    const request = context.index.requests.get(context.data.text("request"));
    const after = request && TRANSITIONS[context.item.type]?.[request.state];
    if (!after) return "text";
    request.state = after;
    return change(request, context);
  };
}

/** Messages whose text is this request's, as long as nobody edited or ended them. */
function followers(index: Index, request: RequestState): MessageState[] {
  return (index.bound.get(request.id) ?? []).filter((m) => m.status === "streaming" && !m.edited);
}

function addTokens(request: RequestState, { index, item, data }: Context): Change {
  const batch = data.number("batch");
  if (batch < request.batches) return "text";
  request.batches = batch + 1 + (item.to ?? item.v) - item.v;
  for (const token of data.list<number>("tokens")) request.tokens.push(token);
  const first = request.first_token === null;
  request.first_token ??= item.time;
  request.text += data.text("text");
  for (const message of followers(index, request)) {
    message.content = request.text;
    message.updated = item.time;
    message.first_token ??= item.time;
  }
  // With tools, what was text a moment ago may turn out to be a call.
  return first || request.tools.length ? "structure" : "text";
}

function endRequest(request: RequestState, { index, item, data }: Context): void {
  request.ended = item.time;
  request.usage = data.any<Usage>("usage");
  request.reason = data.maybe("reason");
  request.timings = data.any<Timings>("timings");
  request.code = data.maybe("code");
  request.message = data.maybe("message");
  request.text = data.maybe("text") ?? request.text;
  for (const message of followers(index, request)) message.content = request.text;
  for (const message of index.bound.get(request.id) ?? []) {
    if (message.status === "streaming") endMessage(message, MESSAGE_AFTER[request.state]!, item);
  }
}

export const onRequest: Record<string, Handler> = {
  "request.queued": queueRequest,
  "request.claimed": moving((request, { item, data }) => {
    request.epoch = data.number("epoch");
    request.worker = data.text("worker");
    request.claimed ??= item.time;
  }),
  "request.started": moving((request, { item, data }) => {
    request.model = data.text("model");
    request.prompt_tokens = data.number("prompt_tokens");
    request.waited_for = data.list<string>("waited_for");
    request.started ??= item.time;
  }),
  "request.embedded": moving((request, { data }) => {
    request.dimensions = data.number("dimensions");
  }),
  "request.preempted": moving((request, { data }) => void request.preemptions.push(data.text("reason"))),
  "request.resumed": moving(() => {}),
  "request.abandoned": moving((request) => void (request.worker = null)),
  "tokens.generated": moving(addTokens),
  "request.finished": moving(endRequest),
  "request.failed": moving(endRequest),
  "request.cancelled": moving(endRequest),
};
