/** Frames of `everlog.v1` (docs/protocol.md). Times are nanoseconds since the epoch. */

import type { ThreadState } from "./state";

export const PROTOCOL = "everlog.v1";

/** One event of a thread, or several adjacent `tokens.generated` merged (`v`..`to`). */
export interface Item {
  v: number;
  to?: number;
  seq: number;
  type: string;
  time: number;
  actor: string;
  request?: string | null;
  run?: string | null;
  data: Record<string, unknown>;
}

export type ModelInfo = { name: string; context: number; device: string };

export type EventsFrame = { t: "events"; thread: string; first: number; last: number; items: Item[] };
export type LiveFrame = { t: "live"; thread: string; version: number };
export type ResetFrame = {
  t: "reset";
  thread: string;
  version: number;
  state: ThreadState;
  reason: string;
};
export type PongFrame = { t: "pong"; n: number; heads: Record<string, number> };
export type AckFrame = { t: "ack"; id: string; thread: string; version: number; seq: string | number };
export type RefuseFrame = {
  t: "refuse";
  id: string | null;
  code: string;
  message: string;
  field?: string | null;
  thread?: string | null;
};
export type WelcomeFrame = {
  t: "welcome";
  protocol: string;
  incarnation: string;
  version: string;
  user: { id: string };
  model: ModelInfo | null;
  app: { name: string } | null;
};
export type NoticeFrame = { t: "notice"; level: "info" | "error"; code: string; message: string };

export type ServerFrame =
  | WelcomeFrame
  | AckFrame
  | RefuseFrame
  | EventsFrame
  | LiveFrame
  | ResetFrame
  | { t: "threads"; head: number }
  | NoticeFrame
  | PongFrame;

/** A command: taken by the server once, however often it is sent. */
export type Command = { id: string; thread: string } & (
  | { t: "post"; content: string; message: string }
  | { t: "stop" }
  | { t: "rename"; title: string }
  | { t: "delete" }
  | { t: "feedback"; message: string; value: -1 | 0 | 1 }
);

export type ClientFrame =
  | { t: "hello"; protocol: string; token: string | null }
  | { t: "open"; thread: string; after: number; incarnation: string | null }
  | { t: "close"; thread: string }
  | { t: "ping"; n: number }
  | Command;

/** Longest message the server takes, in characters. */
export const MAX_CONTENT = 100_000;
