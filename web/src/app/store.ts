/** The state of the page and what can be done: the one place where log, network and screen meet. */

import { batch, computed, signal } from "@preact/signals";
import type { Change } from "../log/context";
import { Outbox } from "../log/outbox";
import type { Command, ModelInfo, NoticeFrame, RefuseFrame, ServerFrame, WelcomeFrame } from "../log/protocol";
import { Connection, type Link, type Replica } from "../log/socket";
import { uuid7 } from "../log/uuid7";
import { fetchEngine, type EngineStatus } from "./api";
import { nextFrame, schedule } from "./bodies";
import { clearDraft } from "./drafts";
import { keepKey, token } from "./key";
import { root, stored, threadOfPath, threadPath } from "./place";
import { hide, refresh, rowOf, showName, unhide } from "./threads";
import { toast } from "./toasts";
import { load, save } from "./storage";
import { isActive } from "./view";

/** A message sent from here that does not stand in the log yet. */
export interface Posted {
  id: string;
  thread: string;
  content: string;
  error: string | null;
}

export const link = signal<Link>({ is: "connecting" });
export const server = signal<WelcomeFrame | null>(null);
/** What the server last said about itself, until it says the opposite. */
export const notice = signal<NoticeFrame | null>(null);
export const engine = signal<EngineStatus>("ready");
export const model = signal<ModelInfo | null>(null);
export const current = signal("");
/** Why the current thread cannot be shown. */
export const denied = signal<string | null>(null);
const replica = signal<Replica | null>(null);
const revision = signal(0);

/** The thread on the screen. Changes in place: whoever reads this is told of every change. */
export const thread = computed(() => ({ revision: revision.value, replica: replica.value }));
export const active = computed(() => {
  const { replica } = thread.value;
  return replica !== null && isActive(replica.state);
});

const outbox = new Outbox(sessionStorage, stored("outbox"));
export const posted = signal<Posted[]>(
  outbox.all.flatMap((c) => (c.t === "post" ? [{ id: c.message, thread: c.thread, content: c.content, error: null }] : [])),
);
export const stopping = signal<ReadonlySet<string>>(new Set());
/** Judgements on their way: message id -> value. */
export const judged = signal<ReadonlyMap<string, number>>(new Map());

const listener = { link: (now: Link) => void (link.value = now), welcome, changed, frame: receive };
const connection = new Connection(new URL("ws", root).href.replace(/^http/, "ws"), outbox, listener, token);

export const retryNow = () => connection.now();

/** Try again with this API key. */
export function unlock(key: string): void {
  keepKey(key);
  if (server.value) location.reload(); // what is shown may be another user's
  else connection.now();
}

/** Begin: show the thread of the address and connect. */
export function start(): void {
  addEventListener("popstate", () => show(threadOfAddress()));
  addEventListener("pagehide", () => deletions.forEach((commit) => commit()));
  show(threadOfAddress());
  connection.start();
}

function threadOfAddress(): string {
  return threadOfPath(location.pathname) ?? newThread();
}

/** Id for a new chat: the same one until something is said in it, also over reloads. */
function newThread(): string {
  const known = load("new", sessionStorage);
  const id = known || uuid7();
  if (!known) save("new", id, sessionStorage);
  return id;
}

/** How often a thread that is still being read is drawn (ms). */
const READING_MS = 200;
let drawn = 0;
let pending: "soon" | "now" | null = null;

function show(id: string): void {
  batch(() => {
    denied.value = null;
    current.value = id;
    replica.value = connection.follow(id);
    revision.value += 1;
  });
  drawn = performance.now();
}

/** Go to a thread. */
export function openThread(id: string): void {
  if (id !== current.value || denied.value) {
    history.pushState(null, "", threadPath(id));
    show(id);
  }
}

/** Go to an empty chat. */
export function newChat(): void {
  const id = newThread();
  if (location.pathname !== root.pathname) history.pushState(null, "", root.pathname);
  if (id !== current.value) show(id);
}

/** The new chat has become one that can be found again: give it its address. */
function settle(id: string): void {
  if (load("new", sessionStorage) !== id) return;
  save("new", "", sessionStorage);
  if (location.pathname === root.pathname) history.replaceState(null, "", threadPath(id));
}

// ------------------------------------------------------------------------------- receiving

function welcome(frame: WelcomeFrame): void {
  server.value = frame;
  if (frame.model) model.value = frame.model;
  void lookAtEngine();
  refresh(0);
}

const LOOK_MS = 1500;
let look: ReturnType<typeof setTimeout> | undefined;

/** Ask how the engine is, and again while it is about to change: notices are not repeated. */
async function lookAtEngine(): Promise<void> {
  clearTimeout(look);
  const now = await fetchEngine();
  if (!now) return;
  engine.value = now.engine;
  model.value = now.model;
  if (now.engine === "starting" || now.engine === "restarting") look = setTimeout(() => void lookAtEngine(), LOOK_MS);
}

function changed(from: Replica, change: Change): void {
  if (from.state.id !== current.value) return;
  replica.value = from;
  schedule();
  if (change === "text") return;
  const draw = () => {
    pending = null;
    drawn = performance.now();
    tidy(from);
    revision.value += 1;
  };
  if (from.live && pending !== "now") {
    pending = "now";
    nextFrame(draw);
  } else if (!pending) {
    pending = "soon";
    setTimeout(() => pending === "soon" && draw(), Math.max(0, READING_MS - (performance.now() - drawn)));
  }
}

/** Drop what was shown in advance and stands in the log now. */
function tidy({ state }: Replica): void {
  if (state.messages.some((message) => message.role === "user")) settle(state.id);
  const known = new Set(state.messages.map((message) => message.id));
  if (posted.value.some((post) => known.has(post.id))) posted.value = posted.value.filter((post) => !known.has(post.id));
  if (stopping.value.has(state.id) && !isActive(state)) stopping.value = without(stopping.value, state.id);
  const late = state.messages.filter((m) => judged.value.get(m.id) === (m.feedback?.value ?? 0));
  if (late.length) {
    const left = new Map(judged.value);
    for (const message of late) left.delete(message.id);
    judged.value = left;
  }
}

function without(set: ReadonlySet<string>, id: string): ReadonlySet<string> {
  return new Set([...set].filter((entry) => entry !== id));
}

function receive(frame: ServerFrame): void {
  if (frame.t === "threads") return refresh();
  if (frame.t === "notice") return heed(frame);
  if (frame.t === "refuse") return refused(frame);
}

function heed(frame: NoticeFrame): void {
  if (frame.code === "reload_failed") notice.value = frame;
  else if (frame.code === "reloaded") {
    notice.value = null;
    toast(frame.message || "Handlers reloaded.");
  } else if (frame.code.startsWith("engine_")) void lookAtEngine();
}

function refused(frame: RefuseFrame): void {
  const command = outbox.settle(frame.id);
  if (!command) {
    if (frame.thread === current.value) denied.value = frame.message;
    return;
  }
  if (command.t === "post") {
    const failed = (post: Posted) => (post.id === command.message ? { ...post, error: frame.message } : post);
    posted.value = posted.value.map(failed);
    return;
  }
  if (command.t === "feedback") judged.value = new Map([...judged.value].filter(([id]) => id !== command.message));
  if (command.t === "stop") stopping.value = without(stopping.value, command.thread);
  if (command.t === "delete") unhide(command.thread);
  toast(frame.message, { level: "error" });
  refresh();
}

// -------------------------------------------------------------------------------- commands

function send(command: Command): void {
  connection.command(command);
}

/** Say something in the current thread. */
export function post(content: string): void {
  const [message, id, to] = [uuid7(), uuid7(), current.value];
  posted.value = [...posted.value, { id: message, thread: to, content, error: null }];
  send({ t: "post", id, thread: to, content, message });
  clearDraft(to);
  settle(to);
}

/** Take back a message that the server refused. */
export function discard(id: string): void {
  posted.value = posted.value.filter((entry) => entry.id !== id);
}

/** Send a refused message again, as a new one. */
export function repost(entry: Posted): void {
  discard(entry.id);
  post(entry.content);
}

export function stop(): void {
  const id = current.value;
  if (!active.value || stopping.value.has(id)) return;
  stopping.value = new Set(stopping.value).add(id);
  send({ t: "stop", id: uuid7(), thread: id });
}

export function rename(id: string, title: string): void {
  const text = title.trim().slice(0, 200);
  if (!text || text === rowOf(id)?.title) return;
  showName(id, text);
  send({ t: "rename", id: uuid7(), thread: id, title: text });
}

export function judge(message: string, value: -1 | 0 | 1): void {
  judged.value = new Map(judged.value).set(message, value);
  send({ t: "feedback", id: uuid7(), thread: current.value, message, value });
}

/** Deletions that can still be undone: what tells the server of each. */
const deletions = new Set<() => void>();

/** Delete a thread; for a moment it can be undone, and only then the server is told. */
export function remove(id: string, title: string): void {
  hide(id);
  if (id === current.value) newChat();
  const commit = () => {
    if (deletions.delete(commit)) send({ t: "delete", id: uuid7(), thread: id });
  };
  deletions.add(commit);
  const undo = () => {
    deletions.delete(commit);
    unhide(id);
  };
  toast(`Deleted “${title}”.`, { action: { label: "Undo", run: undo }, gone: commit });
}
