/** The time now, for running timers: ticks only while somebody looks at it. */

import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";

const TICK_MS = 100;
const now = signal(Date.now());
let watchers = 0;
let timer: ReturnType<typeof setInterval> | undefined;

/** Milliseconds since the epoch, renewed ten times a second while `running`. */
export function useNow(running: boolean): number {
  useEffect(() => {
    if (!running) return undefined;
    if (watchers++ === 0) timer = setInterval(() => (now.value = Date.now()), TICK_MS);
    return () => {
      if (--watchers === 0) clearInterval(timer);
    };
  }, [running]);
  return running ? Math.max(now.value, Date.now()) : 0;
}
