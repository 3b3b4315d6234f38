/** The rule by which a client follows a thread without a hole and without a repeat. */

import type { EventsFrame, LiveFrame, PongFrame, ResetFrame } from "./protocol";

export type Verdict = "apply" | "drop" | "reopen" | "replace" | "ignore";

export interface Decision {
  verdict: Verdict;
  cursor: number;
}

/**
 * What to do with a frame when everything up to `cursor` has been applied.
 *
 * `apply` its items and go on from the new cursor; `drop` what is known already; `reopen` the
 * thread after the unchanged cursor, because something is missing; `replace` the whole state.
 */
export function decide(cursor: number, frame: EventsFrame | LiveFrame | PongFrame | ResetFrame, thread?: string): Decision {
  switch (frame.t) {
    case "events": {
      const { first, last } = frame;
      if (first === cursor + 1 && last >= first) return { verdict: "apply", cursor: last };
      return { verdict: last <= cursor ? "drop" : "reopen", cursor };
    }
    case "reset":
      return { verdict: "replace", cursor: frame.version };
    case "live":
      return { verdict: frame.version > cursor ? "reopen" : "ignore", cursor };
    case "pong": {
      const head = thread === undefined ? undefined : frame.heads[thread];
      return { verdict: head !== undefined && head > cursor ? "reopen" : "ignore", cursor };
    }
  }
}
