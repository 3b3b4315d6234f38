/** What was typed and not sent, for each thread; it outlives reloads and restarts. */

import { signal } from "@preact/signals";
import { load, save } from "./storage";

const key = (thread: string) => `draft:${thread}`;

/** Counts up whenever a draft is changed from outside the input. */
export const draftChanged = signal(0);

export function draftOf(thread: string): string {
  return load(key(thread));
}

export function keepDraft(thread: string, text: string): void {
  save(key(thread), text);
}

export function clearDraft(thread: string): void {
  save(key(thread), "");
  draftChanged.value += 1;
}

/** Put a text into the composer. */
export function suggest(thread: string, text: string): void {
  save(key(thread), text);
  draftChanged.value += 1;
}
