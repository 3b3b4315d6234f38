/** The list of threads, and what is done to a thread as a whole. */

import { computed, signal } from "@preact/signals";
import { fetchThreads, type ThreadRow } from "./api";

const rows = signal<ThreadRow[]>([]);
/** Deleted here, while it can still be undone. */
const hidden = signal<ReadonlySet<string>>(new Set());
/** Renamed here, until the list says so too. */
const renamed = signal<ReadonlyMap<string, string>>(new Map());

export const search = signal("");
export const listState = signal<"loading" | "ready" | "failed">("loading");
export const more = signal<number | string | null>(null);

export const threads = computed(() =>
  rows.value
    // What was begun over the API and has nothing to show yet is not listed.
    .filter((row) => !hidden.value.has(row.id) && (row.messages > 0 || row.title))
    .map((row) => ({ ...row, title: renamed.value.get(row.id) ?? row.title })),
);

let latest = 0;
let timer: ReturnType<typeof setTimeout> | undefined;

/** Read the list again, soon: hints and key strokes come in bursts. */
export function refresh(delay = 150): void {
  clearTimeout(timer);
  timer = setTimeout(() => void read(false), delay);
}

export function loadMore(): Promise<void> {
  return read(true);
}

async function read(further: boolean): Promise<void> {
  const ticket = ++latest;
  try {
    const page = await fetchThreads(search.value.trim(), further ? more.value : null);
    if (ticket !== latest) return; // a newer reading is on its way
    rows.value = further ? [...rows.value, ...page.items] : page.items;
    more.value = page.next;
    listState.value = "ready";
    forgetNames();
  } catch {
    if (ticket === latest) listState.value = "failed";
  }
}

function forgetNames(): void {
  const left = [...renamed.value].filter(([id, title]) => rows.value.find((row) => row.id === id)?.title !== title);
  if (left.length !== renamed.value.size) renamed.value = new Map(left);
}

export function showName(id: string, title: string): void {
  renamed.value = new Map(renamed.value).set(id, title);
}

export function hide(id: string): void {
  hidden.value = new Set(hidden.value).add(id);
}

export function unhide(id: string): void {
  const left = new Set(hidden.value);
  left.delete(id);
  hidden.value = left;
}

export function rowOf(id: string): ThreadRow | undefined {
  return rows.value.find((row) => row.id === id);
}
