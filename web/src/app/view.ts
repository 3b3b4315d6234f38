/** What stands in the conversation, in order: the state of a thread as a list of entries. */

import { Index, type MessageState, type RequestState, type RunState, type StepState, type ThreadState } from "../log/state";

export interface StepNode {
  step: StepState;
  children: StepNode[];
}

/** `stamp` changes whenever an entry has to be drawn anew: states change in place. */
export type Entry = { key: string; stamp: string } & (
  | { kind: "message"; message: MessageState; request: RequestState | undefined; run: RunState | undefined }
  | { kind: "activity"; run: RunState; steps: StepNode[]; count: number }
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
  const messages = state.messages.filter(isShown);
  const { before, after } = attach(state, messages);
  const { requests, runs } = Index.of(state);
  const list: Entry[] = [...(after.get("") ?? [])];
  for (const message of messages) {
    list.push(...(before.get(message.id) ?? []));
    const request = message.request === null ? undefined : requests.get(message.request);
    const run = message.run === null ? undefined : runs.get(message.run);
    const { status, updated, feedback } = message;
    const stamp = `${status} ${updated} ${feedback?.value} ${request?.ended} ${run?.ended}`;
    list.push({ kind: "message", key: message.id, stamp, message, request, run });
    list.push(...(after.get(message.id) ?? []));
  }
  return list;
}

/** A streamed message is shown once there is something to read. */
function isShown(message: MessageState): boolean {
  if (message.status === "removed") return false;
  return message.status !== "streaming" || message.content !== "";
}

/** Where activities, waiting lines and ends of runs go: before or after which message. */
function attach(state: ThreadState, messages: MessageState[]) {
  const before = new Map<string, Entry[]>();
  const after = new Map<string, Entry[]>();
  const add = (map: Map<string, Entry[]>, id: string, entry: Entry) => map.set(id, [...(map.get(id) ?? []), entry]);
  const ids = new Set(messages.map((message) => message.id));
  for (const run of state.runs) {
    const own = messages.filter((message) => message.run === run.id && message.role !== "user");
    const trigger = run.message && ids.has(run.message) ? run.message : null;
    const end = own.at(-1)?.id ?? trigger ?? messages.at(-1)?.id ?? "";
    const steps = state.steps.filter((step) => step.run === run.id);
    if (steps.length) {
      const stamp = run.ended === null ? String(state.version) : run.status;
      const entry: Entry = { kind: "activity", key: `steps-${run.id}`, stamp, run, steps: stepTree(steps), count: steps.length };
      if (trigger) add(after, trigger, entry);
      else if (own[0]) add(before, own[0].id, entry);
      else add(after, end, entry);
    }
    const label = waitingFor(state, run, steps);
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
function waitingFor(state: ThreadState, run: RunState, steps: StepState[]): string | null {
  const open = state.requests.filter((request) => request.run === run.id && request.state in WAITING);
  const silent = open.find((request) => request.state !== "running" && request.text !== "");
  if (silent) return "The answer goes on in a moment";
  if (run.status !== "running") return null;
  if (open.some((request) => request.text !== "")) return null;
  if (steps.some((step) => step.status === "running")) return null;
  if (open[0]) return WAITING[open[0].state]!;
  const writing = state.messages.some(
    (message) => message.run === run.id && message.status === "streaming" && message.content !== "",
  );
  return writing ? null : "Working";
}
