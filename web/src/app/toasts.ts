/** Short messages at the edge of the screen, and what a screen reader is told. */

import { signal } from "@preact/signals";
import { uuid7 } from "../log/uuid7";

export interface Toast {
  id: string;
  text: string;
  level: "info" | "error";
  action?: { label: string; run: () => void };
}

export const toasts = signal<Toast[]>([]);
/** Text of the polite live region. */
export const announcement = signal("");

export function toast(text: string, options: Partial<Omit<Toast, "id" | "text">> = {}, ms = 6000): string {
  const entry: Toast = { id: uuid7(), text, level: "info", ...options };
  toasts.value = [...toasts.value, entry].slice(-4);
  setTimeout(() => dismiss(entry.id), ms);
  return entry.id;
}

export function dismiss(id: string): void {
  toasts.value = toasts.value.filter((entry) => entry.id !== id);
}

/** Say something to screen readers. The same text twice is said twice. */
export function announce(text: string): void {
  announcement.value = announcement.value === text ? `${text}\u00a0` : text;
}

document.addEventListener("announce", (event) => announce((event as CustomEvent<string>).detail));
