/** Short messages at the edge of the screen, and what a screen reader is told. */

import { signal } from "@preact/signals";
import { uuid7 } from "../log/uuid7";

export interface Toast {
  id: string;
  text: string;
  level: "info" | "error";
  action?: { label: string; run: () => void };
  /** Told when it is gone, unless its action was taken. */
  gone?: () => void;
}

export const toasts = signal<Toast[]>([]);
/** Text of the polite live region. */
export const announcement = signal("");

const SHOWN_MS = 6000;
const MOST = 4;
/** Whether the pointer or the focus is on them: then they stay. */
let held = false;
let timers = new Map<string, ReturnType<typeof setTimeout>>();

export function toast(text: string, options: Partial<Omit<Toast, "id" | "text">> = {}): void {
  const entry: Toast = { id: uuid7(), text, level: "info", ...options };
  toasts.value = [...toasts.value, entry];
  for (const { id } of toasts.value.slice(0, -MOST)) dismiss(id);
  if (!held) expire(entry.id);
}

function expire(id: string): void {
  timers.set(id, setTimeout(() => dismiss(id), SHOWN_MS));
}

/** While somebody is at them, toasts stay. */
export function hold(now: boolean): void {
  if (now === held) return;
  held = now;
  for (const timer of timers.values()) clearTimeout(timer);
  timers = new Map();
  if (!held) for (const { id } of toasts.value) expire(id);
}

export function dismiss(id: string, taken = false): void {
  const entry = toasts.value.find((one) => one.id === id);
  if (!entry) return;
  clearTimeout(timers.get(id));
  timers.delete(id);
  toasts.value = toasts.value.filter((one) => one !== entry);
  if (!toasts.value.length) held = false; // what was looked at is gone
  if (taken) entry.action?.run();
  else entry.gone?.();
}

/** Say something to screen readers. The same text twice is said twice. */
export function announce(text: string): void {
  announcement.value = announcement.value === text ? `${text}\u00a0` : text;
}

document.addEventListener("announce", (event) => announce((event as CustomEvent<string>).detail));
