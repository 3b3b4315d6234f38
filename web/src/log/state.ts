/**
 * What a thread looks like after its events: the shape of app/projections/model.py, which the
 * server also sends in `reset`. Times are nanoseconds since the epoch (exact to 0.3 µs here).
 */

export type MessageStatus = "streaming" | "done" | "failed" | "stopped" | "interrupted" | "removed";
/** Of runs and steps. */
export type Status = "running" | "completed" | "failed" | "stopped" | "interrupted";
export type RequestStatus =
  | "queued"
  | "claimed"
  | "running"
  | "preempted"
  | "finished"
  | "failed"
  | "cancelled";

export interface Feedback {
  value: number;
  comment: string | null;
}

export interface MessageState {
  id: string;
  role: string;
  content: string;
  author: string | null;
  status: MessageStatus;
  level: string;
  parent: string | null;
  step: string | null;
  run: string | null;
  request: string | null;
  version: number;
  created: number;
  updated: number;
  first_token: number | null;
  ended: number | null;
  edited: boolean;
  feedback: Feedback | null;
  metadata: Record<string, unknown>;
}

export interface ErrorInfo {
  kind: string;
  message: string;
  traceback?: string | null;
}

export interface RunState {
  id: string;
  hook: string;
  node: string;
  message: string | null;
  status: Status;
  resumable: boolean;
  version: number;
  started: number;
  ended: number | null;
  error: ErrorInfo | null;
  reason: string | null;
}

export interface StepState {
  id: string;
  name: string;
  kind: string;
  run: string | null;
  parent: string | null;
  request: string | null;
  input: unknown;
  output: unknown;
  status: Status;
  version: number;
  started: number;
  ended: number | null;
  error: ErrorInfo | null;
}

export interface Usage {
  prompt_tokens?: number;
  completion_tokens?: number;
  cached_tokens?: number;
}

export interface Timings {
  queue_ms?: number;
  prefill_ms?: number;
  decode_ms?: number;
}

export interface RequestState {
  id: string;
  state: RequestStatus;
  epoch: number;
  run: string | null;
  model: string | null;
  worker: string | null;
  params: Record<string, unknown>;
  /** Names of those on offer. */
  tools: string[];
  /** All of the text is calls. */
  forced: boolean;
  embeds: boolean;
  dimensions: number | null;
  text: string;
  tokens: number[];
  batches: number;
  prompt_tokens: number;
  waited_for: string[];
  preemptions: string[];
  reason: string | null;
  usage: Usage | null;
  timings: Timings | null;
  code: string | null;
  message: string | null;
  version: number;
  queued: number;
  claimed: number | null;
  started: number | null;
  first_token: number | null;
  ended: number | null;
}

export interface ThreadState {
  id: string;
  version: number;
  seq: number;
  owner: string | null;
  title: string | null;
  created: number;
  updated: number;
  deleted: boolean;
  shared: boolean;
  source: string | null;
  source_version: number | null;
  metadata: Record<string, unknown>;
  settings: Record<string, unknown>;
  session: Record<string, unknown>;
  messages: MessageState[];
  runs: RunState[];
  steps: StepState[];
  requests: RequestState[];
}

/** The state of a thread before its first event. */
export function empty(thread: string): ThreadState {
  return {
    id: thread,
    version: 0,
    seq: 0,
    owner: null,
    title: null,
    created: 0,
    updated: 0,
    deleted: false,
    shared: false,
    source: null,
    source_version: null,
    metadata: {},
    settings: {},
    session: {},
    messages: [],
    runs: [],
    steps: [],
    requests: [],
  };
}

/** Lookup by id, kept beside a state and never part of it. */
export class Index {
  readonly messages: Map<string, MessageState>;
  readonly runs: Map<string, RunState>;
  readonly steps: Map<string, StepState>;
  readonly requests: Map<string, RequestState>;
  /** Messages whose text is a request's. */
  readonly bound = new Map<string, MessageState[]>();

  private constructor(state: ThreadState) {
    this.messages = new Map(state.messages.map((message) => [message.id, message]));
    this.runs = new Map(state.runs.map((run) => [run.id, run]));
    this.steps = new Map(state.steps.map((step) => [step.id, step]));
    this.requests = new Map(state.requests.map((request) => [request.id, request]));
    for (const message of state.messages) if (message.request) this.bind(message.request, message);
  }

  bind(request: string, message: MessageState): void {
    this.bound.set(request, [...(this.bound.get(request) ?? []), message]);
  }

  private static readonly known = new WeakMap<ThreadState, Index>();

  static of(state: ThreadState): Index {
    let index = Index.known.get(state);
    if (!index) Index.known.set(state, (index = new Index(state)));
    return index;
  }
}

const TITLE_LENGTH = 60;

/** The beginning of a text as a title: one line, cut at a word; null if blank. */
export function deriveTitle(text: string): string | null {
  const line = [...text].slice(0, 20 * TITLE_LENGTH).join("").split(/\s+/).filter(Boolean).join(" ");
  const chars = [...line];
  if (chars.length <= TITLE_LENGTH) return line || null;
  const head = chars.slice(0, TITLE_LENGTH + 1).join("");
  const cut = head.lastIndexOf(" ");
  return `${(cut > 0 ? head.slice(0, cut) : chars.slice(0, TITLE_LENGTH).join("")).trimEnd()}…`;
}
