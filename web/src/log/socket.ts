/**
 * The connection: keeps one WebSocket alive, follows one thread, and sends commands until they
 * are acknowledged. Knows nothing of the user interface.
 */

import { backoff } from "./backoff";
import { decide } from "./cursor";
import { Outbox } from "./outbox";
import { PROTOCOL, type ClientFrame, type Command, type PongFrame, type ServerFrame, type WelcomeFrame } from "./protocol";
import { fold, type Change } from "./reducer";
import { empty, type ThreadState } from "./state";

const PING_MS = 15_000;
const PATIENCE_MS = 10_000;
/** Threads kept in memory, so that going back to one shows it at once. */
const KEEP = 12;
/** How long a thread may stay behind the head a pong named before it is opened again. */
const BEHIND_MS = 2_000;
/** Close code of a server that ends on purpose and will be back. */
const RESTART = 1012;
/** Close code of a server that wants an API key, or another one. */
const KEY = 4401;
/** Close codes after which trying again is of no use. */
const FATAL: Record<number, string> = {
  4403: "This address is not allowed to connect to the server.",
  4426: "The server speaks a newer protocol. Reload the page.",
};

/** A thread as far as this client has read it. */
export interface Replica {
  state: ThreadState;
  cursor: number;
  incarnation: string | null;
  live: boolean;
  /** An `open` was sent because of a hole; until it is answered, later frames do not fit. */
  reopening: boolean;
}

export type Link =
  | { is: "connecting" | "open" }
  | { is: "lost"; tries: number; since: number; offline: boolean }
  | { is: "refused"; message: string }
  | { is: "locked"; message: string };

export interface Listener {
  link(link: Link): void;
  welcome(frame: WelcomeFrame): void;
  changed(replica: Replica, change: Change): void;
  frame(frame: ServerFrame): void;
}

export class Connection {
  private socket: WebSocket | null = null;
  private retry: ReturnType<typeof setTimeout> | undefined;
  private pinger: ReturnType<typeof setInterval> | undefined;
  private watchdog: ReturnType<typeof setTimeout> | undefined;
  private welcomed = false;
  /** The server let us not in: coming again is of no use without another key. */
  private locked = false;
  private tries = 0;
  private since = 0;
  private pings = 0;
  private incarnation: string | null = null;
  private following: string | null = null;
  private readonly replicas = new Map<string, Replica>();

  constructor(
    private readonly url: string,
    private readonly outbox: Outbox,
    private readonly listener: Listener,
    private readonly token: () => string | null = () => null,
  ) {
    addEventListener("online", () => this.locked || this.now());
    addEventListener("offline", () => this.ping()); // a server on this machine is still there
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible") this.awake();
    });
  }

  start(): void {
    this.listener.link({ is: "connecting" });
    this.connect();
  }

  /** Try again at once. */
  now(): void {
    if (this.socket?.readyState === WebSocket.OPEN) return;
    this.tries += 1;
    this.connect();
  }

  /** Follow a thread, instead of the one followed so far. Returns what is known of it. */
  follow(thread: string): Replica {
    if (this.following && this.following !== thread) this.send({ t: "close", thread: this.following });
    const replica = this.replica(thread);
    if (this.following !== thread) {
      this.following = thread;
      this.open(replica);
    }
    return replica;
  }

  /** Send a command now and, until it is acknowledged, after every reconnect. */
  command(command: Command): void {
    this.outbox.add(command);
    if (this.welcomed) this.send(command);
  }

  private replica(thread: string): Replica {
    const known = this.replicas.get(thread);
    const replica = known ?? { state: empty(thread), cursor: 0, incarnation: null, live: false, reopening: false };
    this.replicas.delete(thread); // to the end: least recently used first
    this.replicas.set(thread, replica);
    for (const oldest of this.replicas.keys()) {
      if (this.replicas.size <= KEEP) break;
      this.replicas.delete(oldest);
    }
    return replica;
  }

  private connect(): void {
    this.drop();
    const socket = new WebSocket(this.url);
    this.socket = socket;
    this.watchdog = setTimeout(() => this.lost(0), PATIENCE_MS);
    socket.onopen = () => {
      this.send({ t: "hello", protocol: PROTOCOL, token: this.token() });
      if (this.following) this.open(this.replica(this.following));
      this.pinger = setInterval(() => this.ping(), PING_MS);
    };
    socket.onmessage = (event) => {
      this.heard();
      this.receive(JSON.parse(event.data as string) as ServerFrame);
    };
    socket.onclose = (event) => this.lost(event.code, event.reason);
  }

  /** Forget the socket without waiting for its end: a dead one may take minutes to notice. */
  private drop(): void {
    clearTimeout(this.retry);
    clearTimeout(this.watchdog);
    clearInterval(this.pinger);
    this.welcomed = false;
    const socket = this.socket;
    if (!socket) return;
    this.socket = null;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
  }

  private lost(code: number, reason = ""): void {
    const wasOpen = this.welcomed;
    this.drop();
    const replica = this.following ? this.replicas.get(this.following) : undefined;
    if (replica) replica.live = false;
    this.locked = code === KEY;
    if (this.locked) return this.listener.link({ is: "locked", message: reason });
    const fatal = FATAL[code];
    if (fatal) return this.listener.link({ is: "refused", message: fatal });
    if (wasOpen || !this.since) this.since = Date.now();
    if (wasOpen) this.tries = 0;
    const wait = code === RESTART && wasOpen ? Math.random() * 100 : backoff(this.tries + 1);
    const { tries, since } = this;
    this.listener.link({ is: "lost", tries: tries + 1, since, offline: !navigator.onLine });
    this.retry = setTimeout(() => this.now(), wait);
  }

  /** The tab is looked at again: find out quickly whether the connection still lives. */
  private awake(): void {
    if (this.locked) return;
    if (this.socket?.readyState === WebSocket.OPEN) this.ping();
    else if (this.socket?.readyState !== WebSocket.CONNECTING) this.now();
  }

  private ping(): void {
    if (this.socket?.readyState !== WebSocket.OPEN) return;
    this.send({ t: "ping", n: ++this.pings });
    clearTimeout(this.watchdog);
    this.watchdog = setTimeout(() => this.lost(0), PATIENCE_MS);
  }

  private heard(): void {
    clearTimeout(this.watchdog);
  }

  private open(replica: Replica): void {
    replica.reopening = false;
    const { cursor: after, incarnation, state } = replica;
    this.send({ t: "open", thread: state.id, after, incarnation });
  }

  private send(frame: ClientFrame): void {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(frame));
  }

  private receive(frame: ServerFrame): void {
    switch (frame.t) {
      case "welcome":
        return this.greeted(frame);
      case "events":
      case "reset":
      case "live":
        return this.advance(frame);
      case "pong":
        for (const thread of Object.keys(frame.heads)) this.compare(thread, frame);
        return;
      case "ack":
        this.outbox.settle(frame.id);
        break;
      case "refuse":
        if (frame.code === "draining") return; // stays in the outbox: the next server takes it
        break;
      default:
    }
    this.listener.frame(frame);
  }

  private greeted(frame: WelcomeFrame): void {
    this.welcomed = true;
    this.tries = 0;
    this.since = 0;
    this.incarnation = frame.incarnation;
    this.listener.link({ is: "open" });
    this.listener.welcome(frame);
    for (const command of this.outbox.all) this.send(command);
  }

  /** A thread may be behind the head of a pong for a moment; if nothing arrives, ask again. */
  private compare(thread: string, frame: PongFrame): void {
    const replica = this.replicas.get(thread);
    if (!replica || decide(replica.cursor, frame, thread).verdict !== "reopen") return;
    const before = replica.cursor;
    setTimeout(() => {
      if (thread === this.following && replica.cursor === before) this.reopen(replica);
    }, BEHIND_MS);
  }

  private reopen(replica: Replica): void {
    if (replica.reopening) return;
    this.open(replica);
    replica.reopening = true;
  }

  private advance(frame: Extract<ServerFrame, { t: "events" | "reset" | "live" }>): void {
    const replica = this.replicas.get(frame.thread);
    if (!replica || frame.thread !== this.following) return;
    const { verdict, cursor } = decide(replica.cursor, frame);
    if (verdict === "reopen") return this.reopen(replica);
    if (verdict === "drop") return;
    replica.reopening = false;
    let change: Change = "structure";
    if (frame.t === "events") change = fold(replica.state, frame.items);
    else if (frame.t === "reset") replica.state = frame.state;
    else replica.live = true;
    replica.cursor = cursor;
    replica.incarnation = this.incarnation;
    this.listener.changed(replica, change);
  }
}
