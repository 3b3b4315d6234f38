/** Numbers, times and names as people read them. */

import type { RequestState } from "../log/state";

const NS_PER_MS = 1e6;

/** A duration in milliseconds: 85 ms, 2.4 s, 3 min 05 s. */
export function duration(ms: number): string {
  if (ms < 0) ms = 0;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 59_950) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, "0")} s`;
}

/** Milliseconds between two times in nanoseconds since the epoch; without an end: until now. */
export function between(start: number, end: number | null, now: number = Date.now()): number {
  return Math.max(0, (end === null ? now : end / NS_PER_MS) - start / NS_PER_MS);
}

// Made once: making one takes longer than a hundred uses of it.
const number = new Intl.NumberFormat("en");
const hourMinute = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });
const dateTime = new Intl.DateTimeFormat([], { dateStyle: "short", timeStyle: "medium" });

export function count(n: number, noun: string): string {
  return `${number.format(n)} ${noun}${n === 1 ? "" : "s"}`;
}

/** What an answer cost: tokens, speed, time to the first token, time in all. */
export function costs(request: RequestState): string[] {
  const { usage, timings, queued, first_token: first, ended } = request;
  const parts: string[] = [];
  const tokens = usage?.completion_tokens ?? request.tokens.length;
  if (tokens) parts.push(count(tokens, "token"));
  const decode = timings?.decode_ms || (first !== null && ended !== null ? between(first, ended) : 0);
  if (tokens > 1 && decode > 0) parts.push(`${((tokens / decode) * 1000).toFixed(1)} tok/s`);
  if (first !== null) parts.push(`first token ${duration(between(queued, first))}`);
  if (ended !== null) parts.push(duration(between(queued, ended)));
  return parts;
}

/** The time of day, for the margin. */
export function clock(time: number): string {
  return hourMinute.format(time / NS_PER_MS);
}

/** Date and time, for titles. */
export function stamp(time: number): string {
  return dateTime.format(time / NS_PER_MS);
}

/** Heading under which a thread stands in the list. */
export function dayGroup(time: number, now: number = Date.now()): string {
  const day = (ms: number) => new Date(ms).setHours(0, 0, 0, 0);
  const days = Math.round((day(now) - day(time / NS_PER_MS)) / 86_400_000);
  if (days <= 0) return "Today";
  if (days === 1) return "Yesterday";
  if (days < 7) return "Previous 7 days";
  if (days < 30) return "Previous 30 days";
  return "Older";
}

/** The first words of a text, on one line. */
export function excerpt(text: string, length = 60): string {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > length ? `${line.slice(0, length - 1).trimEnd()}…` : line;
}

/** A value as text for a preview: strings as they are, the rest as JSON, on one line if short. */
export function preview(value: unknown): string {
  if (value === null || value === undefined) return "";
  if (typeof value === "string") return value;
  const line = JSON.stringify(value);
  return line.length <= 72 ? line : JSON.stringify(value, null, 2);
}
