/** What stands in the conversation, in order: the state of a thread as a list of entries. */

import { callId, said, type Said } from "../log/calls";
import { Index, type MessageState, type RequestState, type RunState, type Status, type StepState, type ThreadState } from "../log/state";

/** A step, or what a model called over the API: its result may never come. */
export interface Shown extends Omit<StepState, "status"> {
  status: Status | "waiting";
}

export interface StepNode {
  step: Shown;
  children: StepNode[];
}

/** `stamp` changes whenever an entry has to be drawn anew: states change in place. */
export type Entry = { key: string; stamp: string } & (
  | { kind: "message"; message: MessageState; request: RequestState | undefined; run: RunState | undefined; said: Said; calls: StepNode[] }
  | { kind: "activity"; status: Status; steps: StepNode[]; count: number }
  | { kind: "calls"; calls: StepNode[] }
  | { kind: "waiting"; label: string }
  | { kind: "ended"; run: RunState }
);

/** Runs that nobody has ended yet. */
export function activeRuns(state: ThreadState): RunState[] {
  return state.runs.filter((run) => run.status === "running");
}

/** Whether an answer is being made: then there is something to stop. */
export function isActive(state: ThreadState): boolean {
  return activeRuns(state).length > 0 || state.messages.some((message) => message.status === "streaming");
}

/** The steps of a run as a tree, in order of their start. */
export function stepTree(steps: StepState[]): StepNode[] {
  const nodes = new Map(steps.map((step) => [step.id, { step, children: [] } as StepNode]));
  const roots: StepNode[] = [];
  for (const node of nodes.values()) {
    const parent = node.step.parent === null ? undefined : nodes.get(node.step.parent);
    (parent?.children ?? roots).push(node);
  }
  return roots;
}

/** All entries of a conversation. */
export function entries(state: ThreadState): Entry[] {
  const { requests, runs } = Index.of(state);
  const { before, after } = attach(state);
  const loose = state.steps.filter((step) => step.run === null);
  const results = new Map(loose.map((step) => [step.id, step]));
  const list: Entry[] = [...(after.get("") ?? [])];
  const messages = state.messages.map((message) => {
    const request = message.request === null ? undefined : requests.get(message.request);
    const parts = said(message.content, request, message.status !== "streaming");
    return { message, request, parts, calls: callsOf(parts, request, results) };
  });
  const given = loose.filter((step) => results.has(step.id)); // not called by a model
  for (const { message, request, parts, calls } of messages) {
    addGiven(list, given, message.version);
    list.push(...(before.get(message.id) ?? []));
    if (isShown(message, parts)) {
      const run = message.run === null ? undefined : runs.get(message.run);
      const { status, updated, feedback } = message;
      const stamp = [status, updated, feedback?.value, request?.ended, run?.ended, ...calls.map((call) => call.step.status)].join();
      list.push({ kind: "message", key: message.id, stamp, message, request, run, said: parts, calls });
    } else if (message.status === "streaming" && message.run === null) {
      const label = (request && WAITING[request.state]) ?? "Working";
      list.push({ kind: "waiting", key: `wait-${message.id}`, stamp: label, label });
    }
    list.push(...(after.get(message.id) ?? []));
  }
  addGiven(list, given, Infinity);
  return list;
}

/** A message is shown once there is something to read. */
function isShown(message: MessageState, { text, calls, calling }: Said): boolean {
  if (message.status === "removed") return false;
  return message.status !== "streaming" || text !== "" || calls.length > 0 || calling;
}

/** What a model called, each with its result, which is taken out of `results`. */
function callsOf({ calls }: Said, request: RequestState | undefined, results: Map<string, StepState>): StepNode[] {
  if (!request) return [];
  return calls.map(({ name, arguments: input }, index) => {
    const id = callId(request.id, index);
    const result = results.get(id);
    results.delete(id);
    return callNode(result ?? { ...NO_RESULT, id, name, input, request: request.id, started: request.queued });
  });
}

const NO_RESULT = { kind: "tool", run: null, parent: null, output: null, status: "running", version: 0, ended: null, error: null } as const;

/** Nothing runs here: the client does, and says so or not. */
function callNode(step: StepState): StepNode {
  return { step: { ...step, status: step.status === "running" ? "waiting" : step.status }, children: [] };
}

/** Calls that a client wrote down itself, before what came later than them. */
function addGiven(list: Entry[], given: StepState[], version: number): void {
  const count = given.findIndex((step) => step.version > version);
  const calls = given.splice(0, count < 0 ? given.length : count).map(callNode);
  if (!calls.length) return;
  const stamp = calls.map((call) => call.step.status).join();
  list.push({ kind: "calls", key: `calls-${calls[0]!.step.id}`, stamp, calls });
}

/** Lists by a key, in order. */
function group<T>(list: T[], key: (entry: T) => string | null): Map<string | null, T[]> {
  const groups = new Map<string | null, T[]>();
  for (const entry of list) {
    const known = groups.get(key(entry));
    if (known) known.push(entry);
    else groups.set(key(entry), [entry]);
  }
  return groups;
}

/** Where activities, waiting lines and ends of runs go: before or after which message. */
function attach(state: ThreadState) {
  const before = new Map<string, Entry[]>();
  const after = new Map<string, Entry[]>();
  const add = (map: Map<string, Entry[]>, id: string, entry: Entry) => map.set(id, [...(map.get(id) ?? []), entry]);
  const visible = state.messages.filter((m) => m.status !== "removed" && (m.status !== "streaming" || m.content !== ""));
  const ids = new Set(visible.map((message) => message.id));
  const said = group(visible, (message) => (message.role === "user" ? null : message.run));
  const made = group(state.steps, (step) => step.run);
  const asked = group(state.requests, (request) => request.run);
  for (const run of state.runs) {
    const own = said.get(run.id) ?? [];
    const trigger = run.message && ids.has(run.message) ? run.message : null;
    const end = own.at(-1)?.id ?? trigger ?? visible.at(-1)?.id ?? "";
    const steps = made.get(run.id) ?? [];
    if (steps.length) {
      const stamp = run.ended === null ? String(state.version) : run.status;
      const entry: Entry = { kind: "activity", key: `steps-${run.id}`, stamp, status: run.status, steps: stepTree(steps), count: steps.length };
      if (trigger) add(after, trigger, entry);
      else if (own[0]) add(before, own[0].id, entry);
      else add(after, end, entry);
    }
    const label = waitingFor(run, own, steps, asked.get(run.id) ?? []);
    if (label) add(after, end, { kind: "waiting", key: `wait-${run.id}`, stamp: label, label });
    if (isNewsworthy(run, own)) add(after, end, { kind: "ended", key: `end-${run.id}`, stamp: run.status, run });
  }
  return { before, after };
}

/** Whether the end of a run says more than its last message already does. */
function isNewsworthy(run: RunState, own: MessageState[]): boolean {
  if (run.status === "stopped") return own.at(-1)?.status !== "stopped";
  if (run.status === "failed") return own.at(-1)?.level !== "error";
  return run.status === "interrupted";
}

const WAITING: Record<string, string> = {
  queued: "Waiting for the model",
  claimed: "Waiting for the model",
  running: "Reading the prompt",
  preempted: "Making room for others",
};

/** What a run is busy with while nothing of it moves on the screen; null if something does. */
function waitingFor(run: RunState, own: MessageState[], steps: StepState[], requests: RequestState[]): string | null {
  const open = requests.filter((request) => request.state in WAITING);
  const silent = open.find((request) => request.state !== "running" && request.text !== "");
  if (silent) return "The answer goes on in a moment";
  if (run.status !== "running") return null;
  if (open.some((request) => request.text !== "")) return null;
  if (steps.some((step) => step.status === "running")) return null;
  if (open[0]) return WAITING[open[0].state]!;
  return own.some((message) => message.status === "streaming") ? null : "Working";
}
